# shellcheck shell=sh
# Sourced by what installs packages of Debian and Ubuntu. Where it cannot install, it says what to do and
# ends well.

say() { echo "moh-deploy: $*" >&2; }

# install_packages PURPOSE WITHOUT_APT ON_FAILURE PACKAGE...
install_packages() {
    purpose=$1 without_apt=$2 on_failure=$3
    shift 3
    if ! command -v apt-get >/dev/null; then
        say "$without_apt"
        return 0
    fi
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        say "for $purpose run: sudo apt-get install $*"
        return 0
    fi
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    # Word splitting is meant: as_root is a list.
    # shellcheck disable=SC2086
    { $as_root apt-get update -qq && $as_root apt-get install -y -qq --no-install-recommends "$@"; } >&2 ||
        say "apt-get failed; $on_failure"
}
