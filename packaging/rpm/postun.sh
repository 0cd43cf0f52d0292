if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
if [ -S /run/udev/control ]; then
    udevadm control --reload || :
fi
if [ "$1" = 0 ]; then
    rm -rf /run/passthru
fi
