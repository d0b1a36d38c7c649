#!/bin/sh
# Installs the overlay's agent below /usr/local, or another version over it. Starts nothing: `overlay-agent init`
# and `overlay-agent join` do. An agent that runs is restarted, which loses no packet: maps and programs stay.
set -eu
cd "$(dirname "$0")"

prefix=/usr/local
own=$prefix/share/overlay-agent
settings=/etc/default/overlay-agent

if [ "$(id -u)" != 0 ]; then
    echo "install.sh: only root can write below $prefix" >&2
    exit 77
fi

mkdir -p "$own" /etc/default
find bin lib share -type f | sort > "$own/files.new"
while read -r file; do
    mode=644
    case $file in bin/* | *.sh) mode=755 ;; esac
    mkdir -p "$prefix/$(dirname "$file")"
    # Beside the old file and then in its place: at any moment there is one of them.
    cp "$file" "$prefix/$file.new"
    chmod "$mode" "$prefix/$file.new"
    mv -f "$prefix/$file.new" "$prefix/$file"
done < "$own/files.new"
# What an earlier version had and this one does not.
if [ -e "$own/files" ]; then
    while read -r file; do
        grep -Fqx "$file" "$own/files.new" || rm -f "$prefix/$file"
    done < "$own/files"
fi
mv -f "$own/files.new" "$own/files"
# What is there may have been changed.
[ -e "$settings" ] || cp etc/default/overlay-agent "$settings"

if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload
    systemctl try-restart overlay-agent.service
else
    echo "install.sh: systemd does not run here: start \`overlay-agent run\` with whatever does"
fi
echo "overlay-agent is installed below $prefix; $own/uninstall.sh removes it"
