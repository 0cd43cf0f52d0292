if [ -e /usr/lib/sysusers.d/passthru.conf ] && command -v systemd-sysusers >/dev/null; then
    systemd-sysusers passthru.conf
fi
if [ -e /usr/lib/tmpfiles.d/passthru.conf ] && command -v systemd-tmpfiles >/dev/null; then
    systemd-tmpfiles --create passthru.conf || :
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ -e /usr/lib/systemd/system/passthru-recover.service ]; then
        systemctl enable --quiet passthru-recover.service || :
    fi
fi
if [ -S /run/udev/control ]; then
    udevadm control --reload || :
fi
