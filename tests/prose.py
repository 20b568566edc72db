#!/usr/bin/env python3
"""Measures the language of the comments, documents and type names: python3 tests/prose.py [--list N] [--gate]

Prints one row a measure: name, value, goal, pass or short. With --list N also the first N places of
each. With --gate it exits with 1 if a row is short. CONTRIBUTING.md has the rules. Reads comments
and string literals of the Rust files, Markdown files and config/*.toml.
"""
import collections, os, re, subprocess, sys

args = sys.argv[1:]
gate = "--gate" in args
show = int(args[args.index("--list") + 1]) if "--list" in args else 0
roots = [a for i, a in enumerate(args) if not a.startswith("--") and (i == 0 or args[i - 1] != "--list")]
root = roots[0] if roots else "."

files = subprocess.run(["git", "-C", root, "ls-files"], capture_output=True, text=True).stdout.split()
if not files:
    sys.exit("no file is listed: run it in a git checkout")
WH = re.compile(r"^(What|Whether|Who|Whose|Whoever|Where|When|How|Which)\b(?! is (this|it)\?)")
WORDS = [r"\bhe\b", r"\bhis\b", r"\bhim\b", r"\bwhoever\b", r"\bsomebody\b", r"\bnobody\b", r"\btold\b", r"\btells?\b", r"\bhears?\b",
         r"\banew\b", r"\bbegun\b", r"\bgoes on\b", r"\bof its own\b", r"\bof their own\b", r"; none\b", r"\bin vain\b", r"\bforetold\b",
         r"\bbesides\b", r"\basked of\b", r"\bat the most\b", r"\bas ever\b", r"\bthere is to be\b", r"\bthe founding\b", r"\bso many\b"]
BAD = re.compile("|".join(WORDS), re.I)

def blocks(path):
    """Comment paragraphs of a Rust file, as (line, is_doc, text)."""
    out, cur, start, doc, fence = [], [], 0, False, False
    for n, line in enumerate(open(os.path.join(root, path), errors="replace"), 1):
        m = re.match(r"\s*(//[/!]|//)(?!/)\s?(.*)$", line)
        if m and m.group(2).strip().startswith("```"):
            fence = not fence
            m = None
        if m and not fence and m.group(2).strip():
            if not cur:
                start, doc = n, m.group(1) != "//"
            cur.append(m.group(2).strip())
        else:
            if cur:
                out.append((start, doc, " ".join(cur)))
            cur = []
            if not m and not fence:
                fence = False
    if cur:
        out.append((start, doc, " ".join(cur)))
    return out

def literals(path):
    """String literals of a Rust file outside comments and unit tests, as (line, text)."""
    text = open(os.path.join(root, path), errors="replace").read()
    tests = text.find("#[cfg(test)]\nmod tests {")
    text = text[:tests] if tests >= 0 else text
    text = re.sub(r"(?m)^\s*//.*$", lambda m: " " * len(m.group(0)), text)
    for m in re.finditer(r'"((?:\\.|[^"\\])*)"', text, re.S):
        # `{name}` is an identifier.
        yield text.count("\n", 0, m.start()) + 1, re.sub(r"\{[^}]*\}", "", m.group(1))

docs = wh = words = wide = 0
wh_at, bad_at, wide_at, string_at = [], [], [], []
first_doc = True
for f in files:
    if f.endswith(".rs") and f.split("/")[0] in ("src", "benches", "examples", "tests"):
        for line, doc, text in blocks(f):
            words += len(text.split())
            if doc and f.startswith("src/"):
                docs += 1
                if WH.match(text):
                    wh += 1
                    wh_at.append(f"{f}:{line}: {text[:90]}")
            for m in BAD.finditer(re.sub(r"`[^`]*`", "", text)):
                bad_at.append(f"{f}:{line}: {m.group(0)}: {text[max(0, m.start() - 30):m.end() + 30]}")
        if f.startswith("src/") and not f.endswith("tests.rs"):
            for line, text in literals(f):
                for m in BAD.finditer(text):
                    string_at.append(f"{f}:{line}: {m.group(0)}: {' '.join(text.split())[:90]}")
        for n, line in enumerate(open(os.path.join(root, f), errors="replace"), 1):
            if re.match(r"\s*//", line) and len(line.rstrip("\n")) > 100:
                wide += 1
                wide_at.append(f"{f}:{n}")
    elif (f.endswith(".md") or (f.startswith("config/") and f.endswith(".toml"))) and not f.startswith("LICENSE"):
        fence = False
        for n, line in enumerate(open(os.path.join(root, f), errors="replace"), 1):
            if line.strip().startswith("```"):
                fence = not fence
            if fence:
                continue
            if f.endswith(".toml") and not line.lstrip().startswith("#"):
                continue
            words += len(line.split())
            for m in BAD.finditer(re.sub(r"`[^`]*`", "", line)):
                bad_at.append(f"{f}:{n}: {m.group(0)}: {line.strip()[:90]}")

types = collections.defaultdict(set)
for f in files:
    if f.startswith("src/") and f.endswith(".rs"):
        for m in re.finditer(r"^\s*(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait|union) ([A-Z]\w*)", open(os.path.join(root, f)).read(), re.M):
            types[m.group(1)].add(f)
one = sum(1 for t in types if len(re.findall(r"[A-Z][a-z0-9]*", t)) == 1)
rep = sorted((t for t in types if len(types[t]) > 1 and t != "Error"), key=lambda t: -len(types[t]))

rows = [("doc comments in src/ that start with What/Whether/Who/Where/When/How/Which, %", 100 * wh / max(docs, 1), 3.0),
        ("marker words per 1000 words of comments, Markdown and TOML", 1000 * len(bad_at) / max(words, 1), 1.0),
        ("marker words in the texts that users read (string literals in src/)", len(string_at), 0),
        ("comment lines wider than 100 columns", wide, 20),
        ("type names of one word, %", 100 * one / max(len(types), 1), 42.0),
        ("type names defined in more than one file, %", 100 * len(rep) / max(len(types), 1), 10.0)]
short = 0
for name, value, goal in rows:
    ok = value <= goal
    short += not ok
    print(f"{name:88} {value:9.2f} <= {goal:6.2f} {'pass' if ok else 'short'}")
if show:
    for title, at in (("start with a question word", wh_at), ("marker words", bad_at), ("marker words in texts", string_at), ("wide", wide_at),
                      ("repeated type names", [f"{t}: {', '.join(sorted(types[t]))}" for t in rep])):
        print(f"\n{title} ({len(at)}):")
        print("\n".join("  " + a for a in at[:show]))
sys.exit(1 if gate and short else 0)
