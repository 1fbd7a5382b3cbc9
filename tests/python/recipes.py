#!/usr/bin/env python3
"""Builds each of examples/recipes, runs it against a store, and compares what it prints with what examples/RECIPES.md says;
and every line of code of that page must stand in the recipe it is about. A recipe with a second half in Python (NAME.py beside
NAME.cpp) runs before it and after it. One that is a test gets Catch2 and the small S3, and ends with Catch2's last line.

    recipes.py FAKE_S3     the program that serves; without it the environment names a store (S3CACHE_TEST_ENDPOINT, AWS_*)

The functions of the header are compiled once for all. Prints one line a recipe, then 'N passed, N failed'.
"""

import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), '..', '..'))
RECIPES = os.path.join(ROOT, 'examples', 'recipes')
CXX = os.environ.get('CXX', 'c++').split()
STRICT = ['-Wall', '-Wextra', '-Wpedantic', '-Wconversion', '-Wsign-conversion', '-Wshadow', '-Wold-style-cast', '-Werror']
FLAGS = ['-std=c++17', '-DS3CACHE_DECLARATIONS_ONLY', *os.environ.get('CPPFLAGS', '').split(), '-I' + ROOT]
LINK = ['-lcurl', '-lcrypto', '-lz', '-lpthread']


def page():
    """{recipe: (its C++ lines, what it prints)} of the page."""
    text = open(os.path.join(ROOT, 'examples', 'RECIPES.md'), encoding='utf-8').read()
    found = {}
    for section in re.split(r'^## ', text, flags=re.M)[1:]:
        name = re.search(r'\(recipes/(\w+)\.cpp\)', section)
        if not name:
            continue
        code = re.findall(r'^```(?:cpp|python)\n(.*?)^```', section, flags=re.M | re.S)
        prints = re.findall(r'^```text\n(.*?)^```', section, flags=re.M | re.S)
        found[name[1]] = (''.join(code), ''.join(prints))
    return found


def stripped(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def run(command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', **more)


def catch_library():
    found = run(['pkg-config', '--libs', 'catch2'])
    return found.stdout.split() if found.returncode == 0 and '-lCatch2' in found.stdout else []


def build(source, functions, program):
    """What the compiler says of it; empty: it is built."""
    more, libraries = [], LINK
    if 'fake_s3.hpp' in open(source, encoding='utf-8').read():
        tests = os.path.join(ROOT, 'tests')
        more = ['-I' + tests, os.path.join(tests, 'main.cpp'), os.path.join(tests, 'fake_s3.cpp')]
        libraries = [*catch_library(), '-lssl', *LINK]
    built = run([*CXX, *FLAGS, *STRICT, *more, source, functions, '-o', program, *libraries])
    return '' if built.returncode == 0 else built.stdout


def flaw(name, told, functions, work, environment):
    """What is wrong with a recipe; empty if nothing is."""
    source = os.path.join(RECIPES, name + '.cpp')
    if name not in told:
        return 'the page does not have it'
    code, prints = told[name]
    other = source[:-4] + '.py'
    files = [source, other] if os.path.exists(other) else [source]
    there = {line for file in files for line in stripped(open(file, encoding='utf-8').read())}
    strange = [line for line in stripped(code) if line not in there]
    if strange:
        return 'the page shows a line that the recipe does not have: ' + strange[0]
    program = os.path.join(work, name)
    problem = build(source, functions, program)
    if problem:
        return problem
    printed = ''
    for command in [[program], [sys.executable, other], [program]] if len(files) == 2 else [[program]]:
        is_test = 'TEST_CASE' in code
        done = run(command if is_test else [*command, 's3://bucket/recipes'], env=environment, timeout=60)
        if done.returncode != 0:
            return 'status %d, printed:\n%s' % (done.returncode, done.stdout)
        printed += done.stdout.strip().splitlines()[-1] + '\n' if is_test else done.stdout
    return '' if printed == prints else 'printed:\n' + printed


def served(arguments):
    """(the process that serves, the environment that names it)"""
    environment = dict(os.environ)
    if not arguments:
        return None, dict(environment, AWS_ENDPOINT_URL=environment['S3CACHE_TEST_ENDPOINT'])
    server = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    for name, value in re.findall(r"(\w+)='?([^' \n]*)'?", server.stdout.readline()):
        environment[name] = value
    return server, environment


def main():
    told = page()
    names = sorted(name[:-4] for name in os.listdir(RECIPES) if name.endswith('.cpp'))
    server, environment = served(sys.argv[1:])
    failed = 0
    try:
        with tempfile.TemporaryDirectory(prefix='s3cache-recipes.') as work:
            functions = os.path.join(work, 'functions.o')
            built = run([*CXX, *FLAGS, '-c', os.path.join(ROOT, 'tests', 'split', 'impl.cpp'), '-o', functions])
            if built.returncode != 0:
                print(built.stdout)
            for name in names:
                wrong = flaw(name, told, functions, work, environment)
                failed += bool(wrong)
                print('%-5s %s%s' % ('FAIL' if wrong else 'ok', name, ': ' + wrong if wrong else ''))
    finally:
        if server:
            server.terminate()
            server.wait()
    for name in sorted(set(told) - set(names)):
        failed += 1
        print('FAIL  %s: the page has it, examples/recipes has not' % name)
    print('%d passed, %d failed' % (len(set(names) | set(told)) - failed, failed))
    return 0 if names and not failed else 1


sys.exit(main())
