/* The subcommands. Each gets its own argv and returns the code to exit with. */
#ifndef UM_TLS_COMMANDS_H
#define UM_TLS_COMMANDS_H

int command_serve(int argc, char **argv);
int command_connect(int argc, char **argv);
int command_load(int argc, char **argv);
int command_version(void);

#endif
