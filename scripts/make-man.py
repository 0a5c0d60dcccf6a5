#!/usr/bin/env python3
"""Man pages from the public headers, which are the only source of the reference.

    make-man.py --list HEADER...          names of the pages, one a line
    make-man.py --out DIRECTORY HEADER... writes them
    make-man.py --bare HEADER...          functions that have no comment of their own

Every UM_API function gets a page in section 3, every header one in section 7. The one line
of the NAME section comes from man/summaries, everything else from the header.

What the headers must look like: the file starts with a comment ("Threads." at the start of a
paragraph becomes a heading in bold). A comment directly above declarations, without an empty
line between, belongs to the first function there. Any other function falls back to the
comment of the type whose name starts its own (um_event for um_event_set), then to the comment
of the function it is declared with (and says so), then to the text of its
"---- section ----", then to the comment of the header. "Errors: CODE (when), ..." or a sentence
of codes alone becomes the ERRORS section, "Returns ..." the RETURN VALUE section.
"""

import os
import re
import sys

CODE = r"(?:-E[A-Z0-9]+|UM_E[A-Z]+)"

# io.h says "each is its man-page namesake": which page that is.
NAMESAKES = {
    "um_recv": "recv(2)", "um_send": "send(2)", "um_sendv": "writev(2)",
    "um_sendmsg": "sendmsg(2)", "um_recvmsg": "recvmsg(2)", "um_read": "pread(2)",
    "um_write": "pwrite(2)", "um_openat": "openat(2)", "um_splice": "splice(2)",
    "um_connect": "connect(2)", "um_accept": "accept4(2)", "um_shutdown": "shutdown(2)",
    "um_close": "close(2)", "um_poll": "poll(2)", "um_waitid": "waitid(2)",
    "um_futex_wait": "futex(2)", "um_futex_wake": "futex(2)",
}

ERRNO = {
    "-EAGAIN": "It cannot be done now.",
    "-EBUSY": "It is in use.",
    "-ECANCELED": "The fiber was cancelled; see um_fiber_cancel(3).",
    "-ECONNRESET": "The peer reset the connection.",
    "-EDEADLK": "The call would wait for itself.",
    "-EINVAL": "An argument is not valid.",
    "-EMFILE": "The process has too many open descriptors.",
    "-ENFILE": "The system has too many open descriptors.",
    "-ENOMEM": "There is not enough memory.",
    "-EOPNOTSUPP": "The kernel does not have the operation.",
    "-ETIMEDOUT": "The deadline passed.",
}


# ---- reading headers ----

def comment_text(raw):
    """The words of a /* comment */, one paragraph per list item."""
    lines = raw.strip()[2:-2].split("\n")
    lines = [re.sub(r"^\s*\*? ?", "", line, count=1 if i else 0).strip()
             for i, line in enumerate(lines)]
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    return [" ".join(p.split()) for p in paragraphs if p.strip()]


class Declaration:
    def __init__(self, kind, name, code, comment, section, raw):
        self.kind = kind          # "function", "type" or "macro"
        self.name = name
        self.code = code
        self.comment = comment    # paragraphs of the comment above its run, or []
        self.section = section
        self.raw = raw            # as it stands in the header, comment included
        self.owner = None         # whose comment it is: the first function of the run


class Section:
    def __init__(self, title, text):
        self.title, self.text = title, text


class Header:
    def __init__(self, path):
        self.path = path
        self.file = os.path.basename(path)
        self.stem = self.file[:-2]
        self.page = "bio_uring" if self.stem == "bio_uring" else "um_" + self.stem
        text = read(path)
        end = text.index("*/") + 2
        self.top = comment_text(text[:end])
        self.declarations = parse(text[end:])

    def functions(self):
        return [d for d in self.declarations if d.kind == "function"]


def chunks(text):
    """Splits the body of a header into comments, declarations, directives and empty lines."""
    pattern = re.compile(r"/\*.*?\*/|#[^\n]*(?:\\\n[^\n]*)*|\n[ \t]*(?=\n)|\s+", re.S)
    position = 0
    while position < len(text):
        match = pattern.match(text, position)
        if match:
            piece, position = match.group(), match.end()
            if piece.startswith("/*"):
                yield "comment", piece
            elif piece.startswith("#"):
                yield "directive", piece
            elif piece.startswith("\n") and text.startswith("\n", position):
                yield "empty", piece
            continue
        start, depth = position, 0
        while position < len(text):
            if text.startswith("/*", position):
                position = text.index("*/", position) + 2
                continue
            character = text[position]
            position += 1
            depth += (character in "{(") - (character in "})")
            if depth == 0 and (character == ";" or text[start:position] == 'extern "C" {'):
                break
            if text[start:position] == "}":
                break
            if text[start:position].startswith('extern "C" {'):
                break
        yield "code", text[start:position]


def parse(body):
    body = re.sub(r"#ifdef __cplusplus.*?#endif", "", body, flags=re.S)
    declarations, section = [], Section(None, [])
    comment, raw, owner = [], "", None
    for kind, piece in chunks(body):
        heading = re.match(r"/\* ---- (.*?) ----\s*\*?\s*(.*)", piece, re.S)
        if kind == "comment" and heading:
            text = piece.replace("---- " + heading.group(1) + " ----", "", 1)
            section = Section(heading.group(1), comment_text(text))
            comment, raw, owner = [], "", None
        elif kind == "comment" and trailing(body, piece):
            declarations[-1].raw += " " + piece
        elif kind == "comment":
            comment, raw, owner = comment_text(piece), piece, None
        elif kind == "empty":
            comment, raw, owner = [], "", None
        else:
            name, what = identify(kind, piece)
            if what:
                if what == "function" and comment:
                    owner = owner or name
                declarations.append(Declaration(what, name, piece, comment, section,
                                                (raw + "\n" if raw else "") + piece))
                declarations[-1].owner = owner
                raw = ""
    return declarations


def trailing(body, piece):
    """Whether a comment follows code on its line."""
    at = body.index(piece)
    return bool(body[body.rfind("\n", 0, at) + 1:at].strip())


def identify(kind, piece):
    if kind == "directive":
        macro = re.match(r"#\s*define\s+(\w+)", piece)
        return (macro.group(1), "macro") if macro and macro.group(1).startswith("UM_") \
            and macro.group(1) != "UM_API" else (None, None)
    if piece.startswith("UM_API"):
        return re.search(r"(\w+)\s*\(", piece.replace("UM_API", "", 1)).group(1), "function"
    pointer = re.match(r"typedef [^;{]*\(\*(\w+)\)", piece)
    named = re.match(r"(?:typedef\s+)?(?:struct|enum|union)?\s*(\w+)?", piece)
    last = re.search(r"(\w+)\s*;$", piece)
    if pointer:
        return pointer.group(1), "type"
    if piece.startswith(("typedef", "struct", "enum", "union")):
        name = last.group(1) if piece.startswith("typedef") and last else named.group(1)
        return name or "", "type"
    return None, None


# ---- choosing the words ----

def sentences(paragraph):
    return re.split(r"(?<=[\w)\]\"'`>][.?!])\s+(?=[A-Z0-9`\"*-]|um_)", paragraph)


def only_codes(sentence):
    """Whether a sentence is nothing but a list of error codes."""
    if not re.search(CODE, sentence):
        return False
    rest = re.sub(r"\([^)]*\)", "", re.sub(CODE, "", sentence))
    rest = re.sub(r"\b(Errors|or|and|the|socket's|errors)\b", "", rest)
    return not re.search(r"[A-Za-z]", rest)


class Page:
    """What the page of one function says."""

    def __init__(self, header, function, summaries):
        self.header, self.function = header, function
        self.summary = summaries.get(function.name) or self.first_sentence()
        self.lead, self.description, self.returns, self.errors = [], [], [], {}
        namesake = NAMESAKES.get(function.name)
        if namesake:
            self.lead.append(f"{function.name}() is {namesake} but for what is said here.")
        self.take(self.source())
        if not self.lead and len(" ".join(self.description).split()) < 4:
            self.lead.append(capital(self.summary) + ".")
        if namesake:
            self.description += header.top[1:]
        self.add_common_errors()

    def source(self):
        """The comment that speaks about the function; see the top of this file."""
        function, header = self.function, self.header
        if function.owner == function.name:
            if re.search(r"^(The same|Like|Also)\b|\bas above\b", function.comment[0]):
                self.refer_to_previous()
            return function.comment
        if function.name not in NAMESAKES:
            self.lead.append(capital(self.summary) + ".")
        kind = self.kind()
        if kind:
            return kind.comment
        if function.owner and (function.name not in NAMESAKES or "offset" in function.code):
            self.lead.append(f"Declared with {function.owner}(3), of which the header says:")
            return function.comment
        if function.name not in NAMESAKES:
            self.lead.append(f"See {header.page}(7) for the concept and its types.")
        return function.section.text

    def first_sentence(self):
        return shorten(sentences((self.function.comment or self.header.top)[0])[0])

    def kind(self):
        """The type that the function's name starts with, the longest such name."""
        name = self.function.name
        kinds = [d for d in self.header.declarations
                 if d.kind == "type" and d.comment and name.startswith(d.name + "_")]
        return max(kinds, key=lambda d: len(d.name), default=None)

    def refer_to_previous(self):
        before = None
        for other in self.header.functions():
            if other is self.function:
                break
            before = other
        if before and before.section is self.function.section:
            self.lead.append(f"Compare {before.name}(3), which it goes with.")

    def take(self, paragraphs):
        """Sorts sentences into description, return value and errors."""
        openssl_style = self.function.name.startswith(("BIO_", "SSL_"))
        for paragraph in paragraphs:
            paragraph = re.sub(r'See ("\w+") above', rf"See \1 in {self.header.page}(7)", paragraph)
            kept = []
            for sentence in sentences(paragraph):
                if not openssl_style and (sentence.startswith("Errors:") or only_codes(sentence)):
                    if re.match(r"[01](,| or) ", sentence):
                        self.returns.append(sentence[0] + " on success.")
                    self.take_codes(sentence)
                elif re.match(r"(Returns |[01](,| or| on)|NULL without)", sentence):
                    self.returns.append(sentence)
                    self.take_codes(sentence)
                else:
                    kept.append(sentence)
                    self.take_codes(sentence, listed=False)
            if kept:
                self.description.append(" ".join(kept))

    def take_codes(self, sentence, listed=True):
        # In prose the parenthesis after a code need not explain it.
        for code, note in re.findall(rf"({CODE})(?: \(([^)]*)\))?", sentence):
            note = note if listed else ""
            self.errors[code] = self.errors.get(code) or note

    def add_common_errors(self):
        code, top = self.function.code, " ".join(self.header.top)
        if "um_time deadline" in code or "um_time until" in code:
            for error in ("-ETIMEDOUT", "-ECANCELED"):
                self.errors.setdefault(error, "")
            if "UM_ENOTFIBER" in top:
                self.errors.setdefault("UM_ENOTFIBER", "")


def capital(text):
    """A capital first letter, unless the first word is a name in code."""
    return text[0].upper() + text[1:] if re.match(r"[a-z']+( |$)", text) else text


def shorten(sentence):
    text = sentence.strip().rstrip(".").replace("`", "")
    if len(text) > 100:
        text = re.split(r"[:;] |, (?!and )", text)[0]
    if re.match(r"[A-Z][a-z]*(?=[ ,:;]|$)", text) and not text.startswith(("OpenSSL", "I ")):
        text = text[0].lower() + text[1:]
    return text


# ---- writing roff ----

def escape(text):
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq") \
        .replace("^", "\\(ha").replace("~", "\\(ti")


def inline(text, own=None):
    """One sentence of a comment as roff."""
    text = text.replace("\\", "\\e").replace("^", "\\(ha").replace("~", "\\(ti")
    text = re.sub(r"(?<![\w`])-(?=[A-Z0-9l])", r"\\-", text)
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fP", text)
    text = re.sub(r"\b((?:um|BIO|SSL|OPENSSL|ERR|X509)_\w+|[a-z_]+[0-9]*)(\((?:[2378]|3ssl)?\))",
                  r"\\fB\1\\fP\2", text)
    text = re.sub(r"(?<![\\\w])(UM_[A-Z_]+\b\*?|\\-E[A-Z]{2,})", r"\\fB\1\\fP", text)
    text = re.sub(r"(?<![\w\\*])\*([a-z]\w*)", r"\\fI*\1\\fP", text)
    return "\\&" + text if text[:1] in ".'" else text


def prose(paragraphs):
    out = []
    for paragraph in paragraphs:
        out.append(".PP")
        parts = sentences(paragraph)
        if re.fullmatch(r"[A-Z][\w() ]{2,30}\.", parts[0]) and len(parts) > 1 \
                and len(parts[0].split()) <= 3:
            out.append(f".B {parts.pop(0)}")
        out += [inline(sentence) for sentence in parts]
    return out


def section(title, body):
    if body and body[0] == ".PP":
        body = body[1:]
    return [f".SH {title}", *body] if body else []


def prototype(code):
    """The declaration on lines of at most 76 columns, parameters in italics."""
    code = " ".join(code.replace("UM_API ", "", 1).split())
    indent = " " * min(code.index("(") + 1, 30)
    lines = [""]
    for piece in re.findall(r".*?(?:, |$)", code):
        if len(lines[-1]) + len(piece) > 76 and lines[-1].strip():
            lines.append(indent)
        lines[-1] += piece
    out = []
    for line in lines:
        line = line.rstrip()
        line = re.sub(r"(\w+)(?=[,)](?! *\())(?<!void)", r"\\fI\1\\fB", escape(line))
        out.append(f"\\fB{line}\\fP")
    return out


def include_line(header):
    where = header.file if header.stem == "bio_uring" else f"bio_uring/{header.file}"
    return f".B #include <{where}>"


def title(name, number, version):
    return ['.\\" Generated from the headers by make\\-man.py: do not edit.',
            f'.TH "{name}" "{number}" "" "libbio_uring {version}" "libbio_uring"']


def see_also(names):
    return [f".BR {escape(name)} ({number}){',' if i + 1 < len(names) else ''}"
            for i, (name, number) in enumerate(names)]


def error_list(errors, meanings):
    out = ["On failure a negative code is returned, and", ".I errno", "is left alone.",
           ".BR um_strerror (3)", "turns a code into a sentence."]
    for code in sorted(errors, key=lambda c: (c.startswith("UM_"), c)):
        text = errors[code] or meanings.get(code) or ERRNO.get(code, "See errno(3).")
        out += [".TP", f".B {escape(code)}", inline(capital(text).rstrip(".") + ".")]
    return out


def function_page(header, function, words):
    page = Page(header, function, words.summaries)
    siblings = [d.name for d in header.functions() if d.section is function.section]
    at = siblings.index(function.name)
    near = [n for n in siblings[max(0, at - 4):at + 5] if n != function.name]
    pages = [(n, 3) for n in near] + [(header.page, 7)]
    if header.page != "bio_uring":
        pages.append(("bio_uring", 7))
    namesake = NAMESAKES.get(function.name)
    if namesake:
        pages.insert(0, (namesake[:-3], 2))
    out = title(function.name, 3, words.version)
    out += section("NAME", [f"{escape(function.name)} \\- {inline(page.summary)}"])
    out += section("SYNOPSIS", [".nf", include_line(header), ".PP",
                                *prototype(function.code), ".fi"])
    out += section("DESCRIPTION", prose(page.lead + page.description))
    out += section("RETURN VALUE", [inline(s) for s in page.returns])
    if page.errors and re.match(r"UM_API (int|ssize_t|um_time)\b[^*]*\(", function.code) \
            and not function.name.startswith(("BIO_", "SSL_")):
        out += section("ERRORS", error_list(page.errors, words.meanings))
    out += section("SEE ALSO", see_also(pages))
    return out


def listing(code):
    lines = code.strip("\n").split("\n")
    return [".PP", ".in +2n", ".nf", *[escape(line).replace("\\(aq", "\\(aq") or ".sp"
                                       for line in lines], ".fi", ".in"]


def header_page(header, headers, words):
    out = title(header.page, 7, words.version)
    out += section("NAME", [f"{escape(header.page)} \\- "
                            + inline(words.summaries.get(header.page, header.page))])
    out += section("SYNOPSIS", [".nf", include_line(header), ".fi"])
    out += section("DESCRIPTION", prose(header.top))
    types = []
    for declaration in header.declarations:
        if declaration.kind in ("type", "macro") and declaration.code.count(" ") > 1:
            types += listing(declaration.raw)
    out += section("TYPES AND CONSTANTS", types)
    functions = []
    for function in header.functions():
        functions += [".TP", f".BR {escape(function.name)} (3)",
                      inline(Page(header, function, words.summaries).summary)]
    out += section("FUNCTIONS", functions)
    if header.page == "bio_uring":
        out += section("COMPILING", listing(
            "cc program.c $(pkg-config --cflags --libs bio_uring)"))
    others = [(h.page, 7) for h in headers if h is not header]
    if header.page == "bio_uring":
        others.append(("um-tls", 1))
    out += section("SEE ALSO", see_also(others))
    return out


class Words:
    """What the pages need from elsewhere: base.h and man/summaries."""

    def __init__(self, headers):
        base = next(h for h in headers if h.stem == "base")
        text = read(base.path)
        self.meanings = dict(re.findall(r"(UM_E\w+) = [^/]*/\* (.*?) \*/", text))
        self.version = ".".join(re.findall(r"#define UM_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))
        self.summaries = read_summaries()


def read(path):
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def read_summaries():
    here = os.path.dirname(os.path.abspath(__file__))
    lines = read(os.path.join(here, "..", "man", "summaries")).splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line and line[0] != "#")


def pages(headers):
    """(file name, lines) of every page."""
    words = Words(headers)
    for header in headers:
        yield f"{header.page}.7", header_page(header, headers, words)
        for function in header.functions():
            yield f"{function.name}.3", function_page(header, function, words)


def main(arguments):
    if len(arguments) < 2 or arguments[0] not in ("--list", "--out", "--bare"):
        sys.exit(__doc__)
    paths = arguments[2:] if arguments[0] == "--out" else arguments[1:]
    headers = [Header(path) for path in paths]
    if arguments[0] == "--bare":
        for header in headers:
            for function in header.functions():
                if function.owner != function.name:
                    print(f"{header.file}: {function.name}")
        return
    for name, lines in pages(headers):
        if arguments[0] == "--list":
            print(name)
            continue
        with open(os.path.join(arguments[1], name), "w", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
