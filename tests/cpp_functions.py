"""Where the functions of a C++ file begin and end, by counting brackets: enough for a file that clang-format laid out.

    cpp_functions.py FILE [LONGEST]     the LONGEST (10) longest, after a line of figures

A function is what has a body at the scope of a namespace or a class; its lines are those from the start of its declaration
to its closing bracket. A lambda is a part of the function that it stands in. Both branches of an #if are read.
"""

import collections
import re
import sys

Function = collections.namedtuple('Function', 'name first last')

TOKEN = re.compile(r'''
    (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<text>R"(?P<mark>[^(\s]*)\(.*?\)(?P=mark)"|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+')
  | (?P<directive>^[ \t]*\#(?:\\\n|[^\n])*)
  | (?P<word>[A-Za-z_][\w]*|\d(?:'?[\w.])*)
  | (?P<mark_>[^\s])
''', re.VERBOSE | re.DOTALL | re.MULTILINE)


def tokens(text):
    """(token, line) without comments and directives; a literal is one token."""
    line, at = 1, 0
    for match in TOKEN.finditer(text):
        line += text.count('\n', at, match.start())
        at = match.start()
        if match.lastgroup not in ('comment', 'directive'):
            yield ('""' if match.lastgroup == 'text' else match.group()), line


def comment_lines(text):
    """Lines on which there is nothing but a comment."""
    count = 0
    for match in TOKEN.finditer(text):
        if match.lastgroup == 'comment' and not text[text.rfind('\n', 0, match.start()) + 1 : match.start()].strip():
            count += match.group().count('\n') + 1
    return count


def without_template(head):
    """What follows `template <...>`, as often as it stands there."""
    while head and head[0] == 'template':
        depth = 0
        for index, token in enumerate(head):
            depth += (token == '<') - (token == '>')
            if token == '>' and not depth:
                break
        head = head[index + 1 :]
    return head


def name_of(head):
    """The word before the first bracket outside of <> that is no attribute's: `f` of `static int f(int a) const`."""
    for index, token in enumerate(head):
        if token == '(' and index and re.match(r'\w', head[index - 1]) and head[index - 1] not in ('decltype', 'noexcept', 'alignas'):
            return head[index - 1]
        if token == 'operator':
            return 'operator' + ''.join(head[index + 1 : index + 3])
    return None


def kind_of(head):
    """What a `{` opens at the scope of a namespace or a class, by what stands before it."""
    head = without_template(head)
    if not head:
        return 'value'
    depth, outer = 0, []
    for token in head:
        if token in '([':
            depth += 1
        if not depth:
            outer.append(token)
        if token in ')]':
            depth -= 1
    if 'namespace' in outer or 'extern' in outer:
        return 'scope'
    if '=' in outer and 'operator' not in outer:
        return 'value'
    called = '(' in head
    if 'enum' in outer:
        return 'value'
    if any(word in outer for word in ('struct', 'class', 'union')) and not (called and outer[-1] in (')', 'const', 'noexcept', 'override')):
        if not called or 'alignas' in outer:
            return 'scope'
    return 'function' if called and name_of(head) else 'value'


def in_initialisers(head):
    """Whether head ends in a member's name of `: a_(x), b_`, so that a `{` opens its value."""
    depth = 0
    for index, token in enumerate(head):
        if token in '([{':
            depth += 1
        elif token in ')]}':
            depth -= 1
        elif token == ':' and not depth and index and head[index - 1] in (')', 'noexcept'):
            return head[-1] not in (')', '}')
    return False


def functions(text):
    """Every Function of a file."""
    found, head, start = [], [], None
    stack = []  # of what each open { is: 'scope', or ('function', name, first line)
    depth = 0  # of brackets within a body, a value or a list of arguments
    body = None
    round_ = 0
    for token, line in tokens(text):
        if body:
            depth += (token == '{') - (token == '}')
            if not depth:
                if body[0] == 'function':
                    found.append(Function(body[1], body[2], line))
                    head, start = [], None
                elif body[0] == 'value':
                    head.append('}')
                body = None
            continue
        if start is None and token not in '{};':
            start = line
        if token == '(':
            round_ += 1
        elif token == ')':
            round_ -= 1
        if token == '{':
            kind = 'value' if round_ or in_initialisers(head) else kind_of(head)
            if kind == 'scope':
                stack.append(kind)
                head, start = [], None
            else:
                body, depth = (kind, name_of(without_template(head)), start if start is not None else line), 1
        elif token == '}':
            if stack:
                stack.pop()
            head, start = [], None
        elif token == ';' and not round_:
            head, start = [], None
        elif token == ':' and len(head) == 1 and head[0] in ('public', 'private', 'protected'):
            head, start = [], None
        else:
            head.append(token)
    return found


def length(function):
    return function.last - function.first + 1


def summary(found):
    """number, median, 90th percentile, longest"""
    lengths = sorted(map(length, found))
    if not lengths:
        return 0, 0, 0, 0
    return len(lengths), lengths[len(lengths) // 2], lengths[len(lengths) * 9 // 10], lengths[-1]


def fields(text, structure):
    """How many data members a struct of plain fields has: its declarations that are no functions and no types."""
    count, depth, round_, head, inside = 0, 0, 0, [], False
    previous = ''
    for token, _ in tokens(text):
        if not inside:
            inside = token == '{' and previous == structure
            previous = token
            continue
        if token == '{':
            depth += 1
        elif token == '}':
            depth -= 1
            if depth < 0:
                break
        elif token == ';' and not depth:
            flat, angles = [], 0
            for word in head:
                angles += (word == '<') - (word == '>')
                if not angles:
                    flat.append(word)
            count += bool(flat) and flat[0] not in ('using', 'static', 'friend', 'struct', 'enum') and \
                '(' not in flat[: flat.index('=') if '=' in flat else None]
            head = []
            continue
        if not depth:
            head.append(token)
    return count


def main():
    with open(sys.argv[1], encoding='utf-8') as file:
        found = functions(file.read())
    print('%d functions, median %d, p90 %d, longest %d' % summary(found))
    for function in sorted(found, key=length, reverse=True)[: int(sys.argv[2]) if len(sys.argv) > 2 else 10]:
        print('%4d  %s, line %d' % (length(function), function.name, function.first))


if __name__ == '__main__':
    main()
