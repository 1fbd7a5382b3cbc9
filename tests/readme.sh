#!/usr/bin/env bash
# What a newcomer does with README, done: each complete program of it is put beside a copy of the header, in an empty folder,
# and compiled with the line that README shows, as typed and then with every warning an error. With S3CACHE_TEST_ENDPOINT and
# S3CACHE_TEST_BUCKET set, the first one is also run, and must print what README says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

strict='-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast -Wundef -Wcast-qual -Wformat=2
        -Wnull-dereference -Werror'
work=$(mktemp -d "${TMPDIR:-/tmp}/s3cache-readme.XXXXXX")
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

check() { # WHAT COMMAND...
    local what=$1
    shift
    if "$@" >"$work/output" 2>&1; then
        passed=$((passed + 1)) && echo "ok    $what"
    else
        failed=$((failed + 1)) && echo "FAIL  $what" && head -n 40 "$work/output"
    fi
}

in_folder() ( cd "$1" && shift && "$@" )

# Every ```cpp block with a main() becomes LINE/app.cpp, LINE being its first line in README.
extract() {
    awk -v work="$work" '
        /^```cpp$/ { begin = NR + 1; text = ""; next }
        /^```$/ && begin { if (text ~ /int main\(/) {
                               folder = work "/" begin; system("mkdir -p " folder)
                               printf "%s", text > (folder "/app.cpp"); print begin }
                           begin = 0 }
        begin { text = text $0 "\n" }' README.md
}

# README's text between the line `$ ./app` and the end of its block.
shown_output() { awk '/^\$ \.\/app$/ { on = 1; next } /^```/ { on = 0 } on' README.md; }

runs_as_shown() { # FOLDER, on the bucket of the tests in place of my-bucket
    sed -i "s|\"my-bucket\"|\"s3://$S3CACHE_TEST_BUCKET?endpoint=$S3CACHE_TEST_ENDPOINT\"|" "$1/app.cpp"
    # shellcheck disable=SC2086
    in_folder "$1" $line && (cd "$1" && ./app >shown 2>&1) && shown_output | diff - "$1/shown"
}

line=$(sed -n 's/^\$ \(g++ .* app\.cpp .*\)$/\1/p' README.md | head -n 1)
programs=$(extract)
check 'README shows a compile line and a program' test -n "$line" -a -n "$programs"
for number in $programs; do
    cp s3cache.hpp "$work/$number/"
    # shellcheck disable=SC2086
    check "README.md:$number: $line" in_folder "$work/$number" $line
    for compiler in g++ clang++; do
        command -v $compiler >/dev/null || continue
        # shellcheck disable=SC2086
        check "README.md:$number: $compiler, no warning" in_folder "$work/$number" $compiler ${line#g++ } $strict
    done
done
if [ -n "${S3CACHE_TEST_ENDPOINT:-}" ] && [ -n "${S3CACHE_TEST_BUCKET:-}" ]; then
    check 'the first program prints what README shows' runs_as_shown "$work/${programs%%$'\n'*}"
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
