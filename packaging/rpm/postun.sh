if [ -d /run/systemd/system ]; then
    # What the removal began with.
    if [ "$1" = 0 ]; then
        systemctl unmask --quiet --runtime passthru@.service || :
    fi
    systemctl daemon-reload || :
fi
if [ -S /run/udev/control ]; then
    udevadm control --reload || :
fi
if [ "$1" = 0 ]; then
    rm -rf /run/passthru
    # Folders are no part of the package. What the administrator has written stays, and the user and the groups as is the custom.
    for folder in /usr/share/doc/passthru/docs /usr/share/doc/passthru/examples /usr/share/doc/passthru \
        /usr/share/licenses/passthru /etc/passthru/devices.d /etc/passthru; do
        rmdir "$folder" 2> /dev/null || :
    done
fi
