#!/bin/sh
# Adds this Ollama host to the fleet of the balancer at @BALANCER@:
#
#   curl -fsS @BALANCER@/join | sh -s -- CODE [options of ollama-agent-reporter, such as --name]
#
# CODE comes from `ollama-balancer join-code` and lets one host join. Run it again, without a code, to upgrade: without
# options, those of the last time are used, which are in the file `options` there.
#
# 1. It makes a virtual environment in /opt/ollama-agent-reporter, or as another user than root in
#    ~/.local/share/ollama-agent-reporter ($OLLAMA_REPORTER_HOME: elsewhere).
# 2. It installs the balancer's own reporter there, and what that needs from the host's package index.
# 3. It gets this host a key that may only report, and keeps it in the file `key` there, for its owner alone.
# 4. It installs the reporter as a service where it may ($OLLAMA_REPORTER_SERVICE=no: never), or else runs it.
#
# The last line begins it, so that a download that is cut off does nothing. Python runs with -I, or from a file in that
# environment: it must not import what somebody has put into the folder that this is run in, such as /tmp.
set -eu

balancer='@BALANCER@'
wheel='@WHEEL@'
sha256='@SHA256@'

fail() {
    printf 'join: error: %s\n' "$*" >&2
    exit 1
}

find_python() {
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' < /dev/null > /dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    fail "this needs Python 3.10 or newer, and found none: install it (Debian, Ubuntu: apt install python3" \
        "python3-venv; Fedora: dnf install python3; macOS: brew install python), or set PYTHON to where it is"
}

fetch_wheel() {
    "$1" -I - "$balancer/join/$wheel" "$2/$wheel" "$sha256" << 'END'
import hashlib, http.client, sys, urllib.request

url, path, expected = sys.argv[1:]
try:
    with urllib.request.urlopen(url, timeout=60) as answer:
        content = answer.read(64 << 20)
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"join: error: {url} cannot be downloaded ({error})")
if hashlib.sha256(content).hexdigest() != expected:
    sys.exit(f"join: error: {url} has another SHA-256 than this script says: get the script again")
with open(path, "wb") as file:
    file.write(content)
END
}

install() {
    in=$1
    shift
    "$in/venv/bin/python" "$in/venv/bin/pip" install --quiet --disable-pip-version-check "$@" < /dev/null
}

runs_services() {
    [ "${OLLAMA_REPORTER_SERVICE:-yes}" != no ] || return 1
    case $(uname -s) in
        Darwin) return 0 ;;
        *) [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ] ;;
    esac
}

main() {
    code=
    case ${1-} in
        join_*)
            code=$1
            shift
            ;;
        '') [ $# = 0 ] || shift ;;
        -*) ;;
        *) fail "this is no join code: it begins with join_, and 'ollama-balancer join-code' makes one" ;;
    esac
    python=$(find_python)
    "$python" -I -c 'import ensurepip, venv' < /dev/null 2> /dev/null ||
        fail "$python cannot make virtual environments: install its module venv (Debian, Ubuntu: apt install" \
            "python3-venv) and run this again"

    folder=${XDG_DATA_HOME:-${HOME:-/nonexistent}/.local/share}/ollama-agent-reporter
    [ "$(id -u)" != 0 ] || folder=/opt/ollama-agent-reporter
    folder=${OLLAMA_REPORTER_HOME:-$folder}
    umask 022
    mkdir -p "$folder"
    if ! "$folder/venv/bin/python" "$folder/venv/bin/pip" --version < /dev/null > /dev/null 2>&1; then
        "$python" -I -m venv --clear "$folder/venv" < /dev/null
    fi

    extra=
    [ -z "$(command -v nvidia-smi)" ] || extra='[gpu]'
    download=$(mktemp -d)
    trap 'rm -rf "$download"' EXIT
    fetch_wheel "$python" "$download"
    if "$folder/venv/bin/python" -I -c 'import agent_reporter' < /dev/null 2> /dev/null; then
        install "$folder" --force-reinstall --no-deps "$download/$wheel" # it may be another of the same number
    fi
    install "$folder" --upgrade "$download/$wheel$extra"
    rm -rf "$download"
    trap - EXIT

    if [ $# = 0 ] && [ -f "$folder/options" ]; then
        while IFS= read -r word; do set -- "$@" "$word"; done < "$folder/options"
        printf 'join: with the options in %s: %s\n' "$folder/options" "$*" >&2
    elif [ $# != 0 ]; then
        case " $* " in
            *' --once '*) ;;
            *) printf '%s\n' "$@" > "$folder/options" ;;
        esac
    fi
    set -- --balancer "$balancer" --join "$folder/key" "$@"
    OLLAMA_BALANCER_JOIN_CODE=$code
    export OLLAMA_BALANCER_JOIN_CODE
    if runs_services; then
        exec "$folder/venv/bin/ollama-agent-reporter" "$@" --install --yes < /dev/null
    fi
    case " $* " in
        *' --once '*) ;;
        *)
            printf 'join: this runs until Ctrl-C. To run it from boot on, where there is systemd:\n  sudo' >&2
            printf " '%s'" "$folder/venv/bin/ollama-agent-reporter" "$@" --install >&2
            printf '\n' >&2
            ;;
    esac
    exec "$folder/venv/bin/ollama-agent-reporter" "$@" < /dev/null
}

main "$@"
