/* Design decisions that a build with -Dablation=true can switch off one at a time, by
 * UM_ABLATE=name,name in the environment: `./run bench ablate` shows what each is worth.
 * Any other build has none of this: UM_ABLATED() is 0 there. */
#ifndef UM_ABLATION_H
#define UM_ABLATION_H

#include <bio_uring/base.h>

enum um_ablation {
  UM_ABLATE_DEFER_TASKRUN = 1,    /* completions come when the kernel likes */
  UM_ABLATE_MULTISHOT = 2,        /* a submission for every receive */
  UM_ABLATE_INCREMENTAL = 4,      /* a receive takes a whole provided buffer */
  UM_ABLATE_SHARED_STACK = 8,     /* OpenSSL on each fiber's own stack */
  UM_ABLATE_RELEASE_BUFFERS = 16, /* OpenSSL keeps its buffers while a connection is idle */
  UM_ABLATE_COALESCING = 32,      /* each BIO write is a send(2): records, handshake messages */
};

#ifdef UM_ABLATION
extern unsigned um__ablation;
/* Reads the environment, for all reactors from here on. 0, or UM_ECONFIG for an unknown name. */
int um__ablation_read(um_error *error);
#define UM_ABLATED(what) (um__ablation & UM_ABLATE_##what)
#else
#define um__ablation_read(error) 0
#define UM_ABLATED(what) 0
#endif

#endif
