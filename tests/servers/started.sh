# To be sourced by what starts a server that prints one line when it listens.

started() { # PID FILE: waits for its line in FILE; fails where it ended without one, or is silent for a minute
    local _
    for _ in $(seq 600); do
        [ ! -s "$2" ] || return 0
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    echo 'the server did not start' >&2
    return 1
}
