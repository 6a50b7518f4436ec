"""Responses that mean harm, by what they do. All verifiers get all of them."""

from __future__ import annotations

import json

MB = 1 << 20
TEXTS = {
    "tower of powers": r"\boxed{9^{9^{9^{9}}}}",
    "tower without braces": r"\boxed{9^9^9^9}",
    "factorial": r"\boxed{(10^9)!}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 80 + "2" + "}" * 81,
    "nested brackets": r"\boxed{" + "(" * 400 + "1" + ")" * 400 + "}",
    "open braces in a line": "Answer: " + "{" * 900,
    "1 MB of nested LaTeX": r"\boxed{" + r"\sqrt{" * (MB // 7) + "2" + "}" * (MB // 7) + "}",
    "1 MB of nested boxes": r"\boxed{" * (MB // 8) + "2" + "}" * (MB // 8),
    "1 MB of open boxes": r"\boxed{" * (MB // 7),
    "1 MB of boxes": r"\boxed{1}" * (MB // 9),
    "1 MB of boxes and spaces": r"\boxed" + " " * MB,
    "1 MB of opening tags": "<answer>" * (MB // 8),
    "1 MB of thinking": "<think>" * (MB // 7),
    "1 MB of answers": "answer is " * (MB // 10),
    "1 MB of answer and spaces": "answer" + " " * MB + "=",
    "1 MB of hashes": "#" * MB,
    "1 MB of dollars": "the answer is " + "$" * MB,
    "1 MB of lines": "\n" * MB,
    "1 MB of digits": r"\boxed{" + "9" * MB + "}",
    "1 MB in one answer line": "Answer: " + "1+" * (MB // 2),
    "regex bomb of letters": "Answer: " + "a" * 900 + "!",
    "regex bomb of numbers": "Answer: " + "1 " * 450 + "!",
    "regex bomb of commas": r"\boxed{" + "1,111" * 180 + "x}",
    "regex bomb of spaces": r"\boxed{1" + " " * 900 + "x}",
    "regex bomb of text": r"\boxed{" + r"\text{" * 150 + "}" * 150 + "}",
    "regex bomb of units": r"\boxed{5 " + "km/" * 300 + "}",
    "prose": r"\boxed{" + "because " * 100 + "}",
    "binary garbage": bytes(range(256)).decode("latin-1") * 4,
    "binary garbage in a box": r"\boxed{" + "".join(chr(n) for n in range(256) if chr(n) not in "{}\\") * 3 + "}",
    "zero bytes": r"\boxed{" + "\0" * 500 + "}",
    "lone surrogates": r"\boxed{" + "\ud800\udfff" * 100 + "}",
    "code": r"\boxed{__import__('os')._exit(1)}",
    "empty": "",
    "spaces": " \n\t ",
    "empty box": r"\boxed{}",
}
"""Text that is slow to read, or that a parser may choke on."""

ESCAPES = {
    "endless loop": "while True: pass",
    "endless sleep": "import time\nwhile True: time.sleep(60)",
    "deaf to signals": "import signal\nfor n in range(1, 30):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass",
    "endless output": "while True: print('x' * 10_000)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "threads without end": "import threading, time\n"
    "while True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "memory bomb": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "disk bomb": "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'wb').write(b'x' * (1 << 20))",
    "endless recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "regex bomb": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    "huge power": "print(len(str(9 ** 9 ** 9)))",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2).send(b'x')\nprint(1)",
    "write outside": "open('FOLDER/written', 'w').write('x')\nprint(1)",
    "read outside": "open('FOLDER/secret').read()\nprint(1)",
    "remove outside": "import os\nos.remove('FOLDER/secret')\nprint(1)",
    "secret of the environment": "import os\nprint(1 if 'hunter2' in str(dict(os.environ)) else 0)",
    "secret of another's environment": "import glob\nfor p in glob.glob('/proc/[0-9]*/environ'):\n"
    "    try: found = b'hunter2' in open(p, 'rb').read()\n    except OSError: continue\n"
    "    if found: print(1)",
    "kill all": "import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass\nos.kill(-1, 9)\nprint(1)",
    "shell": "import os\nos.system('touch FOLDER/written') or print(1)",
}
"""Programs; each prints the expected 1 only if it gets through. FOLDER and PORT stand for what must not be reached."""

NESTED = {
    "nested lists": "[" * 100_000 + "]" * 100_000,
    "nested objects": '{"a":' * 30_000 + "1" + "}" * 30_000,
    "open lists": "[" * 1_000_000,
    "escapes": '{"name": "' + "\\" * 95_000,
    "digits": '{"name": "f", "arguments": {"x": ' + "9" * 150_000 + "}}",
    "tags": "<tool_call>" * 15_000,
    "fences": "```json\n" * 20_000,
    "bomb of the row's own schema": json.dumps({"name": "f", "arguments": {"x": "a" * 60 + "b"}}),
    "bomb within tags": "<tool_call>" + json.dumps({"name": "f", "arguments": {"x": "a" * 60 + "!"}}) + "</tool_call>",
}
"""JSON."""


def responses(folder: str, port: int) -> dict[str, str]:
    """All of them by name; programs in a fenced block."""
    programs = {name: program.replace("FOLDER", folder).replace("PORT", str(port)) for name, program in ESCAPES.items()}
    return {
        **TEXTS,
        **NESTED,
        **{f"program: {name}": f"```python\n{program}\n```" for name, program in programs.items()},
    }
