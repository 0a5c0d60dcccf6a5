/* Command lines: each subcommand describes its options in one table, from which
 * both parsing and --help follow. */
#ifndef UM_TLS_OPTIONS_H
#define UM_TLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_kind {
  OPTION_FLAG,    /* bool */
  OPTION_TEXT,    /* const char * */
  OPTION_COUNT,   /* uint64_t: decimal, 1 or more */
  OPTION_SIZE,    /* uint64_t: the same, with an optional k, M or G (1024s) */
  OPTION_SECONDS, /* int64_t milliseconds: decimal seconds, "0.5", with an optional s */
};

typedef struct option {
  const char *name;     /* without the dashes; NULL ends the table */
  const char *argument; /* its name in the help; NULL for a flag */
  const char *help;     /* may hold '\n' */
  enum option_kind kind;
  size_t offset; /* of what it sets, in the structure given to options_parse() */
  uint64_t most; /* of a count or size; 0: no bound */
} option;

typedef struct command_line {
  const char *name;     /* "serve" */
  const char *synopsis; /* after the name */
  const char *about;    /* paragraphs before the options */
  const char *examples; /* after them */
  const option *options;
  const char *positional_name; /* of the one positional argument; NULL: takes none */
  size_t positional;           /* offset of where it goes, a const char * */
} command_line;

#define OPTIONS_GO_ON (-1)
/* Parses argv[1..] into *values. OPTIONS_GO_ON, or the code to exit with: EXIT_OK
 * after --help, EXIT_USAGE after saying what is wrong. */
int options_parse(const command_line *line, void *values, int argc, char **argv);

#endif
