/* Messages: one line each on stderr, written whole, "um-tls COMMAND: text". */
#ifndef UM_TLS_SAY_H
#define UM_TLS_SAY_H

/* The subcommand that later lines name; a string that lasts. */
void say_as(const char *command);
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* say(), then `code`, so that a caller can `return fail(EXIT_..., ...)`. */
int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
