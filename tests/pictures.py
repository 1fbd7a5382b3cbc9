#!/usr/bin/env python3
"""Draws examples/pictures: what the command line shows on a terminal, and README's first screen.

    tests/pictures.py [NAME...]     of ls, progress, doctor, readme; all of them unless named

Every line is what a program said: build/s3cache runs on a terminal of its own (a pty) before build/fake_s3, and python3-rich
turns what it wrote into SVG. README goes through cmark-gfm and chromium. Debian: python3-rich cmark-gfm chromium pngquant.
"""

import atexit
import contextlib
import io
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from fcntl import ioctl

sys.path.append('/usr/lib/python3/dist-packages')  # where Debian has rich, whichever python3 this is
import rich._export_format
from rich.console import Console
from rich.text import Text

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), '..'))
BUILD = os.path.join(ROOT, os.environ.get('BUILD', 'build'))
OUT = os.path.join(ROOT, 'examples', 'pictures')
# Nothing is fetched by who looks at a picture: the letters are those of the reader's machine.
FORMAT = re.sub(r'@font-face \{\{.*?\}\}\n', '', rich._export_format.CONSOLE_SVG_FORMAT, flags=re.S).replace('Fira Code', 'ui-monospace').replace('<svg ', '<svg xml:space="preserve" ')
README_CSS = '''body { font: 16px/1.5 "Liberation Sans", Arial, sans-serif; color: #1f2328; width: 896px; margin: 24px auto; }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; margin: 24px 0 16px; line-height: 1.25; }
h1 { font-size: 32px; margin-top: 0 } h2 { font-size: 24px } p, table, pre { margin: 0 0 16px }
a { color: #0969da; text-decoration: none } img { max-width: 100% }
code { font: 85% "DejaVu Sans Mono", monospace; background: #eff1f3; padding: .2em .4em; border-radius: 6px }
pre { background: #f6f8fa; padding: 16px; border-radius: 6px; line-height: 1.45; overflow: hidden }
pre code { background: none; padding: 0 } table { border-collapse: collapse } th, td { border: 1px solid #d1d9e0; padding: 6px 13px }
tr:nth-child(2n) td { background: #f6f8fa }'''


@contextlib.contextmanager
def store(*options):
    """The small S3, and the environment of who uses it."""
    server = subprocess.Popen([os.path.join(BUILD, 'fake_s3'), '--bucket', 'my-bucket', *options], stdout=subprocess.PIPE, text=True)
    try:
        said = dict(word.split('=', 1) for word in shlex.split(server.stdout.readline())[1:])
        home = tempfile.mkdtemp(prefix='s3cache-pictures-')
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        yield {**said, 'PATH': BUILD + ':' + os.environ['PATH'], 'HOME': home, 'LC_ALL': 'C.UTF-8', 'TERM': 'xterm-256color',
               'AWS_EC2_METADATA_DISABLED': 'true', 'S3CACHE_URL': 's3://my-bucket', 'no_proxy': '127.0.0.1'}
    finally:
        server.terminate()
        server.wait()


def on_terminal(line, environment, columns):
    """What the shell's line writes to a terminal: (seconds since its start, text) of each piece."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(environment['HOME'])
        os.execvpe('sh', ['sh', '-c', line], environment)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 50, columns, 0, 0))
    begun, pieces = time.monotonic(), []
    while True:
        if not select.select([terminal], [], [], 120)[0]:
            os.kill(pid, signal.SIGTERM)
            raise SystemExit('silent for too long: ' + line)
        try:
            data = os.read(terminal, 65536)
        except OSError:  # nobody holds the other end any more
            data = b''
        if not data:
            break
        pieces.append((time.monotonic() - begun, data.decode()))
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise SystemExit('%s: exit status %d\n%s' % (line, status, ''.join(text for _, text in pieces)))
    return pieces


def typed(line):
    return Text.assemble(('$ ', 'bold green'), (line, 'bold'))


def shown(pieces):
    return Text.from_ansi(''.join(text for _, text in pieces).replace('\r\n', '\n').rstrip('\n'))


def draw(name, title, texts, columns):
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system='truecolor', legacy_windows=False)
    for text in texts:
        console.print(text, soft_wrap=True, highlight=False)
    write(name, console.export_svg(title=title, code_format=FORMAT, unique_id=name.split('.')[0]).encode())


def write(name, data):
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, name), 'wb') as out:
        out.write(data)
    print('examples/pictures/%s: %d kB' % (name, len(data) // 1000))


def draw_ls():
    with store() as environment:
        with open(os.path.join(environment['HOME'], 'shop.sql'), 'w') as dump:
            dump.writelines("INSERT INTO sales VALUES (%d, 'article %d', %d);\n" % (i, i * 7919 % 1000, i * 31 % 97) for i in range(90000))
        with open(os.path.join(environment['HOME'], 'frame.raw'), 'wb') as frame:
            frame.write(os.urandom(640 * 480))
        on_terminal('s3cache set --gzip --ttl 7d backups/shop.sql shop.sql && s3cache set --bytes --ttl 15m frames/0001 frame.raw && '
                    'printf "f81d4fae-7dec" | s3cache set --text --ttl 5s token/f81d', environment, 100)
        time.sleep(61)
        on_terminal('printf %s \'{"rows":1042,"sum":87320.5}\' | s3cache set --json --ttl 1h reports/2026-11 && '
                    'echo "hello, world" | s3cache set --text greeting', environment, 100)
        time.sleep(2)
        draw('ls.svg', 's3cache', [typed('s3cache ls -l'), shown(on_terminal('s3cache ls -l', environment, 80))], 80)


def draw_progress():
    line = 's3cache set --ttl 7d backups/disk.img disk.img'
    with store('--quirk', 'bandwidth=3000000') as environment:
        environment['S3CACHE_URL'] += '?part_bytes=5242880'
        with open(os.path.join(environment['HOME'], 'disk.img'), 'wb') as image:
            image.write(os.urandom(100_000_000))
        pieces = on_terminal(line, environment, 80)
    # A frame is what stands between two carriage returns, written in pieces: the bar is drawn over itself.
    frames, frame = [], ''
    for when, text in pieces:
        *ended, frame = (frame + text).split('\r')
        frames += [(when, one.replace('\033[K', '')) for one in ended if '%' in one]
    texts = [typed(line)]
    last = frames[-1][0]
    for share in (0, 0.25, 0.5, 0.75, 1):
        when, frame = next((f for f in frames if f[0] >= share * last), frames[-1])
        texts.append(Text.assemble(frame.rstrip().ljust(60), ('after %4.1f s' % when, 'dim')))
    draw('progress.svg', 'one line, at five moments', texts, 80)


def draw_doctor():
    with store() as environment:
        environment['S3CACHE_URL'] += '/shop'
        texts = [typed('s3cache doctor'), shown(on_terminal('s3cache doctor', environment, 104))]
        draw('doctor.svg', 's3cache', texts, 104)


def draw_readme():
    with tempfile.TemporaryDirectory(prefix='s3cache-pictures-') as folder:
        body = subprocess.run(['cmark-gfm', '-e', 'table', '-e', 'autolink', 'README.md'], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        end = body.index('<h2>Use it</h2>')  # what the first screen of a large window shows, and the picture of speed
        page, shot = os.path.join(folder, 'readme.html'), os.path.join(folder, 'shot.png')
        with open(page, 'w', encoding='utf-8') as out:
            out.write('<!doctype html><meta charset="utf-8"><base href="file://%s/"><style>%s</style>%s' % (ROOT, README_CSS, body[:end]))
        chromium = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--user-data-dir=' + folder,
                    '--disable-background-networking', '--disable-component-update', '--allow-file-access-from-files']
        subprocess.run([*chromium, '--window-size=1000,1765', '--screenshot=' + shot, page], check=True, timeout=120, stderr=subprocess.DEVNULL)
        small = subprocess.run(['pngquant', '--strip', '64', '-'], stdin=open(shot, 'rb'), stdout=subprocess.PIPE, check=True).stdout
    write('readme.png', small)


PICTURES = {'ls': draw_ls, 'progress': draw_progress, 'doctor': draw_doctor, 'readme': draw_readme}

if __name__ == '__main__':
    for picture in sys.argv[1:] or PICTURES:
        PICTURES[picture]()
