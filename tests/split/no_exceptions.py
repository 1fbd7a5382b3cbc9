"""s3cache.hpp as a build without exceptions declares it, with the throwing forms added: what no_exceptions.sh has the tests include.

    no_exceptions.py HEADER >OUT

Of the blocks under `#if S3CACHE_EXCEPTIONS` those are opened that only call the try_ forms and throw what these return. They are
known by what they call: `.value()`, `begin()`, `throw`, istream(). A block that catches, or that gives a type another layout
(the base of Error, a std::exception_ptr), stays closed. The rest of the header is as it was.
"""

import re
import sys


def blocks(lines):
    """(first, last) of what each `#if S3CACHE_EXCEPTIONS` holds, up to its #else or #endif."""
    for index, line in enumerate(lines):
        if not re.match(r'#\s*if S3CACHE_EXCEPTIONS\b', line):
            continue
        depth, last = 1, index
        while depth:
            last += 1
            if re.match(r'#\s*if', lines[last]):
                depth += 1
            elif re.match(r'#\s*endif', lines[last]) or (depth == 1 and re.match(r'#\s*el', lines[last])):
                depth -= 1
        yield index, last


def main():
    lines = open(sys.argv[1], encoding='utf-8').read().splitlines()
    # In this mode, whatever the compiler is told.
    asked = [index for index, line in enumerate(lines) if re.match(r'#\s*if defined\(__cpp_exceptions\)', line)]
    found = {'forms': 0, 'cause': 0}
    for first, last in blocks(lines):
        held = '\n'.join(lines[first + 1 : last])
        if 'std::exception_ptr cause' in held:
            # Named in cases that are left out, and by what throws: there never is one.
            lines[first : last] = ['#if 1', '        static constexpr bool cause = false;'] + [''] * (last - first - 2)
            found['cause'] += 1
        elif re.search(r'\.value\(\)|\bbegin\(\)|\bthrow\b|\bistream\(\);', held) and not re.search(
                r'catch|std::runtime_error|streambuf', held):
            lines[first] = '#if 1'
            lines[first : last] = ['' if 'std::rethrow_exception' in line else line for line in lines[first : last]]
            found['forms'] += 1
    if len(asked) != 1 or found['cause'] != 1 or found['forms'] < 3:
        raise SystemExit(f'the header is not what this script knows: {len(asked)} questions, {found}')
    lines[asked[0]] = '#if 0'
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
