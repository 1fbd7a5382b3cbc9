"""Compiles what the documentation shows, so that it stays true.

Every ```cpp block of README.md and docs/*.md: one with a main() is built as it stands with the compile line of the README;
others are put into a function after the includes that they assume. Every example: with the line that its second line gives and
no warning allowed, the functions of the header compiled once for all of them.
A block after a line `<!-- not compiled -->` is left alone; after `<!-- file scope -->` it is compiled outside a function.
Prints one line a check, then 'N passed, N failed'.
"""

import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), '..', '..'))
CXX = os.environ.get('CXX', 'c++')
STRICT = ['-Wall', '-Wextra', '-Wpedantic', '-Wconversion', '-Wsign-conversion', '-Wshadow', '-Wold-style-cast', '-Werror']
LINK = ['-lcurl', '-lcrypto', '-lz']
DECLARED = '-DS3CACHE_DECLARATIONS_ONLY'

# What a snippet may use without saying so.
PRELUDE = '''#include "s3cache.hpp"
#include <chrono>
#include <fstream>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>
using namespace std::chrono_literals;
[[maybe_unused]] static void consume(std::string_view) {}
[[maybe_unused]] static std::string train() { return {}; }
'''


def blocks(path):
    """(line, marker, text) of each C++ block."""
    lines = open(path, encoding='utf-8').read().splitlines()
    found, start, marker = [], None, ''
    for number, line in enumerate(lines, 1):
        if start is None and re.match(r'^\s*```(cpp|c\+\+)\s*$', line):
            start = number
        elif start is not None and line.strip() == '```':
            found.append((start, marker, '\n'.join(lines[start:number - 1]) + '\n'))
            start, marker = None, ''
        elif start is None and line.strip():
            match = re.match(r'^\s*<!--\s*(.*?)\s*-->\s*$', line)
            marker = match.group(1) if match else ''
    return found


def split_includes(text):
    keep = lambda line: line.lstrip().startswith('#include')
    lines = text.splitlines()
    return ('\n'.join(line for line in lines if keep(line)) + '\n',
            '\n'.join('' if keep(line) else line for line in lines) + '\n')


def wrapped(number, marker, text):
    """One translation unit for a block without a main()."""
    includes, body = split_includes(text)
    if marker != 'file scope':
        # The inner braces allow a snippet to make a `cache` of its own.
        body = 'void snippet(s3cache::Cache& cache);\nvoid snippet([[maybe_unused]] s3cache::Cache& cache) { {\n%s} }\n' % body
    return '%s%snamespace block_%d {\n%s}\n' % (PRELUDE, includes, number, body)


def run(command, cwd):
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    return done.returncode == 0, done.stdout


def check_block(work, number, marker, text):
    source = os.path.join(work, 'block.cpp')
    whole = re.search(r'\bint\s+main\s*\(', text)
    with open(source, 'w', encoding='utf-8') as out:
        out.write(text if whole else wrapped(number, marker, text))
    if whole:
        return run([CXX, '-std=c++17', '-I' + ROOT, *STRICT, source, '-o', os.path.join(work, 'block'), *LINK], work)
    # Snippets shadow and leave results unused for brevity; that alone is let pass.
    return run([CXX, '-std=c++17', '-I' + ROOT, DECLARED, '-fsyntax-only', '-Wall', '-Wextra', '-Wno-unused', source], work)


def check_example(work, path, functions):
    name = os.path.basename(path)
    lines = open(path, encoding='utf-8').read().splitlines() + ['', '']
    match = re.search(r'(?:g\+\+|clang\+\+|c\+\+) .*\.cpp.*', lines[1])
    if not lines[0].startswith('//') or not match:
        return False, 'line 1 must say what it shows, line 2 how to compile it\n'
    # A copy, so that what the line writes lands elsewhere. It may be meant for the top folder or for examples/.
    tree = os.path.join(work, 'tree')
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(tree)
    shutil.copy(os.path.join(ROOT, 's3cache.hpp'), tree)
    shutil.copytree(os.path.join(ROOT, 'examples'), os.path.join(tree, 'examples'))
    words = shlex.split(match.group(0))
    source = next(word for word in words if word.endswith('.cpp'))
    cwd = tree if os.path.exists(os.path.join(tree, source)) else os.path.join(tree, 'examples')
    return run([CXX, DECLARED, *STRICT, *words[1:words.index(source) + 1], functions, *words[words.index(source) + 1:]], cwd)


def compile_functions(work):
    functions = os.path.join(work, 'functions.o')
    implementation = os.path.join(ROOT, 'tests', 'split', 'impl.cpp')
    return functions, run([CXX, '-std=c++17', '-I' + ROOT, DECLARED, '-c', implementation, '-o', functions], work)


def main():
    passed = failed = 0
    with tempfile.TemporaryDirectory() as work:
        functions, compiled = compile_functions(work)
        checks = [('the functions of the header', lambda: compiled)]
        for page in [os.path.join(ROOT, 'README.md'), *sorted(glob.glob(os.path.join(ROOT, 'docs', '*.md')))]:
            if not os.path.exists(page):
                checks.append((os.path.basename(page), lambda: (False, 'not there\n')))
                continue
            for number, marker, text in blocks(page):
                if marker != 'not compiled':
                    checks.append(('%s:%d' % (os.path.relpath(page, ROOT), number),
                                   lambda n=number, m=marker, t=text: check_block(work, n, m, t)))
        for path in sorted(glob.glob(os.path.join(ROOT, 'examples', '*.cpp'))):
            checks.append((os.path.relpath(path, ROOT), lambda p=path: check_example(work, p, functions)))
        for name, check in checks:
            ok, output = check()
            print('%s  %s' % ('ok  ' if ok else 'FAIL', name), flush=True)
            if ok:
                passed += 1
            else:
                failed += 1
                sys.stdout.write(output[:4000])
    print('%d passed, %d failed' % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.exit(main())
