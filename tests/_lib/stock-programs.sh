#!/bin/sh
# Install the Debian packages named on the command line where that is possible; a missing one is an error later,
# when the test that needs it fails, never a silent skip.
set -eu
missing=
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing$missing ..."
    export DEBIAN_FRONTEND=noninteractive
    # The packages' services must not start: the tests start their own.
    printf '#!/bin/sh\nexit 101\n' >/tmp/policy-rc.d.$$
    guard=/usr/sbin/policy-rc.d
    [ -e "$guard" ] || { install -m 755 /tmp/policy-rc.d.$$ "$guard"; trap 'rm -f "$guard"' EXIT; }
    rm -f /tmp/policy-rc.d.$$
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "not installed:$missing (the tests that drive them will fail)" >&2
fi
