#!/bin/sh
# Leaves nothing of ours in the kernel, and Docker on a bridge of its own. Lease, credentials and settings stay, so
# that the agent can come back.
set -eu

prefix=/usr/local
own=$prefix/share/overlay-agent

if [ "$(id -u)" != 0 ]; then
    echo "uninstall.sh: only root can remove what is below $prefix" >&2
    exit 77
fi

"$prefix/bin/overlay-agent" leave --yes --keep || echo "uninstall.sh: not everything was removed" >&2
while read -r file; do
    rm -f "$prefix/$file"
done < "$own/files"
rm -f "$own/files"
for folder in doc/overlay-agent/examples doc/overlay-agent overlay-agent; do
    rmdir "$prefix/share/$folder" 2>/dev/null || true
done
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload
fi
