/* Command lines: each subcommand describes its options in one table, from which
 * both parsing and --help follow. */
#ifndef UM_TLS_OPTIONS_H
#define UM_TLS_OPTIONS_H

#include <stdbool.h>
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
  void *value;
  uint64_t most; /* of a count or size; 0: no bound */
} option;

typedef struct command_line {
  const char *name;     /* "serve" */
  const char *synopsis; /* after the name */
  const char *about;    /* paragraphs before the options */
  const char *examples; /* after them */
  const option *options;
  const char **positional; /* where the one positional argument goes; NULL: takes none */
  const char *positional_name;
} command_line;

#define OPTIONS_GO_ON (-1)
/* Parses argv[1..]. OPTIONS_GO_ON, or the code to exit with: EXIT_OK after
 * --help, EXIT_USAGE after saying what is wrong. */
int options_parse(const command_line *line, int argc, char **argv);

#endif
