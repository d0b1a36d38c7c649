# Starts nothing: `overlay-agent init` and `overlay-agent join` do. An agent that runs is restarted by an
# upgrade, which loses no packet: maps and programs stay.
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || :
    if [ "$1" -gt 1 ]; then
        systemctl try-restart overlay-agent.service >/dev/null || :
    fi
fi
