# $1 is 0 when the package is removed, and 1 when it is upgraded.
if [ "$1" = 0 ]; then
    if [ -d /run/systemd/system ]; then
        systemctl stop 'passthru@*.service' || :
        # A device that goes back to its driver appears anew, which may start its guest (`start =`). Not before the stop above:
        # a guest whose unit is masked ends without giving its devices back.
        systemctl mask --quiet --runtime passthru@.service || :
        systemctl stop 'passthru@*.service' || :
        # A unit that has failed is remembered, also without its file.
        systemctl reset-failed 'passthru@*.service' 2> /dev/null || :
        if [ -e /usr/lib/systemd/system/passthru-recover.service ]; then
            systemctl disable --quiet passthru-recover.service || :
        fi
    fi
    if [ -d /run/passthru ]; then
        { passthru recover && passthru udev-reserve --end; } || {
            [ ! -d /run/systemd/system ] || systemctl unmask --quiet --runtime passthru@.service || :
            echo "passthru: devices could not be given back; end the guests that hold them (passthru list), then remove the package again" >&2
            exit 1
        }
    fi
fi
