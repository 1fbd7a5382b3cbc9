#!/usr/bin/env python3
"""What the header weighs, against what it may: `make budget`. Prints each figure, then 'N passed, N failed'.

    tests/budget.py [--record] [--no-times]

tests/budget.txt holds the limits, and the figures as they were last recorded. A figure more than 3 % above its record fails; one
more than 3 % below it asks to be recorded, which --record does. Recorded are those that noise cannot move: instructions, allocations
and system calls of one operation, sizes of stripped programs. They belong to a compiler; with another they are only printed.
Times of compilation are multiples of what a short program with std::regex takes, compiled in turn with them: user time, best of
three (RUNS); noise only adds, so over a limit there are up to three more rounds. CXX names the compiler, BUILD the folder of the fake
S3. Needs valgrind and clang-format 14.
"""

import concurrent.futures
import glob
import os
import re
import resource
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [HERE, os.path.join(HERE, 'bench')]
import cpp_functions  # noqa: E402
import instructions  # noqa: E402

CXX = os.environ.get('CXX', 'g++')
BUILD = os.path.join(ROOT, os.environ.get('BUILD', 'build'))
RUNS = int(os.environ.get('RUNS', '3'))
HEADER = os.path.join(ROOT, 's3cache.hpp')
BUDGET = os.path.join(HERE, 'budget.txt')
LINK = ['-lcurl', '-lcrypto', '-lz']
TOLERANCE = 0.03
FORMATTER = '14'
SHORT, LONG = 10, 50


class Budget:
    """The lines of budget.txt, and what was measured against them."""

    def __init__(self):
        self.compiler = re.sub(r'^\S*g\+\+|^c\+\+', 'GCC', first_line([CXX, '--version']))
        self.recorded_by, self.limits, self.records = '', {}, {}
        with open(BUDGET, encoding='utf-8') as lines:
            for line in lines:
                word, _, rest = line.strip().partition(' ')
                if word == 'compiler':
                    self.recorded_by = rest
                elif word in ('limit', 'record'):
                    value, name = rest.split(None, 1)
                    (self.limits if word == 'limit' else self.records)[name] = float(value)
        self.measured, self.within, self.over, self.better = {}, 0, 0, []

    def row(self, name, value, against, verdict):
        text = f'{value:,.2f}' if isinstance(value, float) else f'{value:,}'
        print(f'  {name:<52} {text:>10}   {against:<22} {verdict}', flush=True)

    def judge(self, name, value, against, well):
        self.within += well
        self.over += not well
        self.row(name, value, against, 'ok' if well else 'OVER')

    def report(self, name, value):
        """A figure with a limit, or none: then it is only printed."""
        limit = self.limits.get(name)
        if limit is None:
            self.row(name, value, '', '')
        else:
            self.judge(name, value, f'at most {limit:,g}', value <= limit)

    def compare(self, name, value):
        """A figure that noise cannot move, against its record."""
        self.measured[name] = value
        record = self.records.get(name)
        if record is None or self.recorded_by != self.compiler:
            self.row(name, value, '', 'not recorded' if record is None else 'another compiler')
            return
        self.judge(name, value, f'recorded {record:,g}', value <= record * (1 + TOLERANCE))
        if value < record * (1 - TOLERANCE):
            self.better.append(name)

    def store(self):
        with open(BUDGET, encoding='utf-8') as lines:
            kept = [line for line in lines if not line.startswith(('compiler ', 'record '))]
        with open(BUDGET, 'w', encoding='utf-8') as out:
            out.writelines(kept)
            out.write(f'compiler {self.compiler}\n')
            out.writelines(f'record {value} {name}\n' for name, value in self.measured.items())

    def close(self, record):
        if record:
            self.store()
            print(f'recorded in {os.path.relpath(BUDGET)}')
        elif self.better:
            print(f"better by more than 3 %, please record (tests/budget.py --record): {', '.join(self.better)}")
        print(f'{self.within} passed, {self.over} failed')
        return 1 if self.over and not record else 0


def first_line(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def read(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


# ---- the text ------------------------------------------------------------------------------------------------------------

def text(budget):
    header = read(HEADER)
    lines = header.splitlines()
    print('the header')
    budget.report('lines', len(lines))
    budget.report('lines over 120 columns', sum(len(line) > 120 for line in lines))
    budget.report('comment lines, percent', 100 * cpp_functions.comment_lines(header) / len(lines))
    found = cpp_functions.functions(header)
    for name, value in zip(('functions', 'function length, median', 'function length, p90', 'function length, longest'),
                           cpp_functions.summary(found)):
        budget.report(name, value)
    for function in sorted(found, key=cpp_functions.length, reverse=True):
        if cpp_functions.length(function) > budget.limits.get('function length, longest', 0):
            print(f'      {cpp_functions.length(function)} lines: {function.name}, s3cache.hpp:{function.first}')
    budget.report('fields of Config', cpp_functions.fields(header, 'Config'))
    layout(budget)


def layout(budget):
    sources = [HEADER]
    for folder in ('examples', 'tests'):
        for ending in ('cpp', 'hpp'):
            sources += glob.glob(os.path.join(ROOT, folder, '**', '*.' + ending), recursive=True)
    try:
        version = re.search(r'version (\d+)', first_line(['clang-format', '--version'])).group(1)
    except FileNotFoundError:
        version = 'none'
    if version != FORMATTER:
        print(f'  layout: not checked, this is clang-format {version} and the files are laid out by {FORMATTER}')
        return
    wrong = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for source, done in zip(sources, pool.map(lambda name: subprocess.run(
                ['clang-format', '--dry-run', '-Werror', name], capture_output=True), sources)):
            if done.returncode:
                wrong.append(os.path.relpath(source, ROOT))
    budget.report('files that clang-format would change', len(wrong))
    for name in wrong:
        print(f'      {name}')


# ---- programs ------------------------------------------------------------------------------------------------------------

def quick_start(work):
    """The first program of README, as a file."""
    for block in re.findall(r'^```cpp\n(.*?)^```', read(os.path.join(ROOT, 'README.md')), re.DOTALL | re.MULTILINE):
        if 'int main(' in block:
            path = os.path.join(work, 'app.cpp')
            with open(path, 'w', encoding='utf-8') as out:
                out.write(block)
            return path
    raise SystemExit('README.md shows no program')


def compile(source, out, *flags):
    """The user time that the compiler takes, if no other one runs beside it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    libraries = [] if '-c' in flags else LINK
    subprocess.run([CXX, '-std=c++17', '-I' + ROOT, *flags, source, '-o', out, *libraries], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def times(budget, work, app):
    print(f'user time of {os.path.basename(CXX)} -O0 -c, as a multiple of a short program with std::regex')
    sources = [os.path.join(HERE, 'size', 'regex.cpp'), app, os.path.join(HERE, 'size', 'header.cpp')]
    taken = []
    for _ in range(4):
        taken += [[compile(source, os.path.join(work, 'time.o'), '-O0', '-c') for source in sources] for _ in range(RUNS)]
        regex, whole, header = map(min, zip(*taken))
        figures = {'times std::regex, quick start': whole / regex, 'times std::regex, header alone': header / regex}
        if all(value <= budget.limits.get(name, value) for name, value in figures.items()):
            break
    print(f'      best of {len(taken)}: std::regex {regex:.2f} s, quick start {whole:.2f} s, header alone {header:.2f} s')
    for name, value in figures.items():
        budget.report(name, value)


def sizes(budget, programs):
    print('stripped size of the quick start, bytes')
    for level, program in programs.items():
        subprocess.run(['strip', program], check=True)
        budget.compare(f'stripped {level}', os.path.getsize(program))


class Fake:
    """The fake S3 as a program. It answers late, so that whoever asks always waits: how long it takes moves no figure."""

    def __enter__(self):
        program = os.path.join(BUILD, 'fake_s3')
        if not os.path.exists(program):
            subprocess.run(['make', '-C', ROOT, '--no-print-directory', f'BUILD={BUILD}', program], check=True, stdout=sys.stderr)
        self.process = subprocess.Popen([program, '--quirk', 'delay=20'], stdout=subprocess.PIPE, text=True)
        for name, value in re.findall(r"(\w+)='?([^' \n]*)", self.process.stdout.readline()):
            os.environ[name] = value
        for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'all_proxy'):
            os.environ.pop(name, None)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def operations(budget, program):
    print('one operation on 4 KiB: instructions in functions of our own, calls of operator new, system calls')
    with Fake():
        for operation in ('get', 'set', 'remove'):
            short, _ = instructions.callgrind([program, operation, str(SHORT)])
            long, calls = instructions.callgrind([program, operation, str(LONG)])
            each = instructions.difference(short, long, LONG - SHORT)
            budget.compare(f'{operation}: own instructions', round(each['own']))
            budget.compare(f'{operation}: allocations', round(each['allocations']))
            budget.compare(f'{operation}: system calls', calls)
            print(f"      all instructions {sum(value for name, value in each.items() if name != 'allocations'):,.0f}: "
                  + ', '.join(f'{name} {each[name]:,.0f}' for name in ('libstdc++', 'libc', 'OpenSSL', 'libcurl')))


def main():
    unknown = set(sys.argv[1:]) - {'--record', '--no-times'}
    if unknown:
        raise SystemExit(__doc__)
    budget = Budget()
    print(budget.compiler)
    with tempfile.TemporaryDirectory(prefix='s3cache-budget.') as work, concurrent.futures.ThreadPoolExecutor(2) as pool:
        app = quick_start(work)
        path = lambda name: os.path.join(work, name)
        ready = {name: pool.submit(compile, source, path(name), level) for name, source, level in
                 (('-Os', app, '-Os'), ('-O2', app, '-O2'), ('operations', os.path.join(HERE, 'size', 'operations.cpp'), '-O2'))}
        text(budget)
        for future in ready.values():
            future.result()
        sizes(budget, {level: path(level) for level in ('-Os', '-O2')})
        operations(budget, path('operations'))
        if '--no-times' not in sys.argv:
            times(budget, work, app)
    return budget.close('--record' in sys.argv)


if __name__ == '__main__':
    sys.exit(main())
