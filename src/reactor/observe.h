/* The hooks behind bio_uring/observe.h: a comparison each while nobody looks. */
#ifndef UM_OBSERVE_H
#define UM_OBSERVE_H

#include "op.h"

#include <bio_uring/observe.h>

#ifdef UM_HAVE_SDT
#include <sys/sdt.h>
#define UM_PROBE1(name, a) DTRACE_PROBE1(bio_uring, name, a)
#define UM_PROBE2(name, a, b) DTRACE_PROBE2(bio_uring, name, a, b)
#define UM_PROBE3(name, a, b, c) DTRACE_PROBE3(bio_uring, name, a, b, c)
#else
#define UM_PROBE1(name, a) ((void)0)
#define UM_PROBE2(name, a, b) ((void)0)
#define UM_PROBE3(name, a, b, c) ((void)0)
#endif

/* "recv", "send", ... */
const char *um__op_name(unsigned code);
/* Tells whoever traces. Only when reactor->trace is set. */
void um__trace(um_reactor *reactor, int kind, const um_op *op, int result, bool more);
void um__histogram_add(um_histogram *histogram, um_time duration);

#endif
