/* OpenSSL's error queue is per thread and fibers share it: what is in it when a
 * fiber suspends is put aside and put back when it resumes. */
#ifndef UM_ERROR_QUEUE_H
#define UM_ERROR_QUEUE_H

typedef struct um_saved_errors um_saved_errors;

/* Empties the queue. NULL when it was empty, which is the usual case. */
um_saved_errors *um__errors_save(void);
/* Empties the queue, then puts back what was saved. */
void um__errors_restore(um_saved_errors *saved);

#endif
