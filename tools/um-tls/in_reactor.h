#ifndef UM_TLS_IN_REACTOR_H
#define UM_TLS_IN_REACTOR_H

/* Runs main(arg) as the first fiber of a reactor of its own on this thread; what
 * it returned (a code to exit with), or EXIT_NO_REACTOR or EXIT_FAILED after
 * saying why. Like um_run(), with the reactor's own words. */
int in_reactor(int (*main)(void *arg), void *arg);

#endif
