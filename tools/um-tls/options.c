#include "options.h"

#include "exit_codes.h"
#include "say.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_option(const option *o) {
  char left[64];
  snprintf(left, sizeof left, "--%s%s%s", o->name, o->argument ? " " : "",
           o->argument ? o->argument : "");
  const char *text = o->help;
  for (int first = 1; *text; first = 0) {
    int length = (int)strcspn(text, "\n");
    printf("  %-27s %.*s\n", first ? left : "", length, text);
    text += length + (text[length] == '\n');
  }
}

static int print_help(const command_line *line) {
  printf("Usage: um-tls %s %s\n\n%s\n\nOptions:\n", line->name, line->synopsis, line->about);
  for (const option *o = line->options; o->name; o++) print_option(o);
  printf("  %-27s %s\n\nExamples:\n%s\n\n", "--help", "this text", line->examples);
  exit_codes_print(stdout);
  return EXIT_OK;
}

static bool parse_count(const char *text, bool suffixes, uint64_t *out) {
  char *end;
  if (*text < '0' || *text > '9') return false;
  errno = 0;
  uint64_t value = strtoull(text, &end, 10);
  int shift = 0;
  if (suffixes && *end) {
    const char *units = "kKmMgG", *unit = strchr(units, *end++);
    if (!unit) return false;
    shift = 10 * ((int)(unit - units) / 2 + 1);
  }
  *out = value << shift;
  return !errno && !*end && *out >> shift == value && value > 0;
}

static bool parse_seconds(const char *text, int64_t *milliseconds) {
  char *end;
  if (*text < '0' || *text > '9' || strpbrk(text, "xXeE")) return false; /* decimal */
  double seconds = strtod(text, &end);
  if (*end == 's') end++;
  *milliseconds = (int64_t)(seconds * 1000 + 0.5);
  return !*end && seconds <= 4e6; /* milliseconds fit 32 bits */
}

static bool store(const option *o, void *values, const char *text) {
  void *value = (char *)values + o->offset;
  switch (o->kind) {
  case OPTION_FLAG: return *(bool *)value = true;
  case OPTION_TEXT: return *(const char **)value = text, *text != '\0';
  case OPTION_SECONDS: return parse_seconds(text, value);
  case OPTION_COUNT:
  case OPTION_SIZE:
    return parse_count(text, o->kind == OPTION_SIZE, value) &&
           (!o->most || *(uint64_t *)value <= o->most);
  }
  return false;
}

static int bad_value(const command_line *line, const option *o, const char *text) {
  static const char *const wanted[] = {
    [OPTION_FLAG] = "nothing",
    [OPTION_TEXT] = "a value",
    [OPTION_COUNT] = "a whole number, 1 or more",
    [OPTION_SIZE] = "a number of bytes such as 512, 64k or 1M",
    [OPTION_SECONDS] = "a number of seconds such as 10 or 0.5",
  };
  if (o->most)
    return fail(EXIT_USAGE, "--%s %s: wanted is %s, at most %" PRIu64 "; see um-tls %s --help",
                o->name, text, wanted[o->kind], o->most, line->name);
  return fail(EXIT_USAGE, "--%s %s: wanted is %s; see um-tls %s --help", o->name, text,
              wanted[o->kind], line->name);
}

static const option *find(const command_line *line, const char *name, size_t length) {
  for (const option *o = line->options; o->name; o++)
    if (strlen(o->name) == length && !memcmp(o->name, name, length)) return o;
  return NULL;
}

/* "--name value" or "--name=value"; moves *i past the value. */
static int parse_option(const command_line *line, void *values, int argc, char **argv, int *i) {
  const char *name = argv[*i] + 2, *equals = strchr(name, '=');
  size_t length = equals ? (size_t)(equals - name) : strlen(name);
  const option *o = find(line, name, length);
  if (!o)
    return fail(EXIT_USAGE, "unknown option %s; see um-tls %s --help", argv[*i], line->name);
  const char *value = equals ? equals + 1 : NULL;
  if (o->kind == OPTION_FLAG && value)
    return fail(EXIT_USAGE, "--%s takes no value; see um-tls %s --help", o->name, line->name);
  if (o->kind != OPTION_FLAG && !value) {
    if (*i + 1 >= argc)
      return fail(EXIT_USAGE, "--%s needs a value; see um-tls %s --help", o->name, line->name);
    value = argv[++*i];
  }
  return store(o, values, value) ? OPTIONS_GO_ON : bad_value(line, o, value);
}

static const char **positional(const command_line *line, void *values) {
  return line->positional_name ? (const char **)((char *)values + line->positional) : NULL;
}

static int parse_positional(const command_line *line, void *values, const char *text) {
  const char **to = positional(line, values);
  if (!to || *to)
    return fail(EXIT_USAGE, "unexpected argument %s; see um-tls %s --help", text, line->name);
  *to = text;
  return OPTIONS_GO_ON;
}

int options_parse(const command_line *line, void *values, int argc, char **argv) {
  int code = OPTIONS_GO_ON;
  for (int i = 1; i < argc && code == OPTIONS_GO_ON; i++) {
    if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return print_help(line);
    if (!strncmp(argv[i], "--", 2)) code = parse_option(line, values, argc, argv, &i);
    else code = parse_positional(line, values, argv[i]);
  }
  if (code == OPTIONS_GO_ON && line->positional_name && !*positional(line, values))
    return fail(EXIT_USAGE, "missing %s; see um-tls %s --help", line->positional_name, line->name);
  return code;
}
