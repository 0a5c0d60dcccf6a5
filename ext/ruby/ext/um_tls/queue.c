/* UM::Queue and UM::Mutex: between fibers of machines and schedulers, and threads. */
#include "machine.h"

/* ---- queue ---- */

typedef struct queue {
  VALUE items;
  long capacity; /* 0: none */
  um_turn poppers, pushers;
} queue;

static void queue_mark(void *data) {
  queue *q = data;
  rb_gc_mark(q->items);
  um_turn_mark(&q->poppers);
  um_turn_mark(&q->pushers);
}

static const rb_data_type_t queue_type = {
    "UM::Queue", {queue_mark, RUBY_DEFAULT_FREE, NULL, NULL, {NULL}}, NULL, NULL,
    RUBY_TYPED_FREE_IMMEDIATELY};

static VALUE queue_allocate(VALUE class) {
  queue *q;
  VALUE self = TypedData_Make_Struct(class, queue, &queue_type, q);
  q->items = Qnil;
  q->items = rb_ary_new();
  return self;
}

static queue *queue_get(VALUE self) { return rb_check_typeddata(self, &queue_type); }

/* UM::Queue.new(capacity = nil): pushing waits when so many items are there. */
static VALUE queue_initialize(int argc, VALUE *argv, VALUE self) {
  VALUE capacity;
  rb_scan_args(argc, argv, "01", &capacity);
  queue_get(self)->capacity = NIL_P(capacity) ? 0 : NUM2LONG(capacity);
  if (queue_get(self)->capacity < 0) rb_raise(rb_eArgError, "the capacity is negative");
  return self;
}

static queue *queue_with_room(VALUE self) {
  queue *q = queue_get(self);
  while (q->capacity && RARRAY_LEN(q->items) >= q->capacity) um_turn_wait(&q->pushers, UM_FOREVER);
  return q;
}

/* push(item): at the end; waits for room. */
static VALUE queue_push(VALUE self, VALUE value) {
  queue *q = queue_with_room(self);
  rb_ary_push(q->items, value);
  um_turn_wake_one(&q->poppers);
  return self;
}

/* unshift(item): at the front; waits for room. */
static VALUE queue_unshift(VALUE self, VALUE value) {
  queue *q = queue_with_room(self);
  rb_ary_unshift(q->items, value);
  um_turn_wake_one(&q->poppers);
  return self;
}

static queue *queue_with_item(VALUE self) {
  queue *q = queue_get(self);
  while (!RARRAY_LEN(q->items)) um_turn_wait(&q->poppers, UM_FOREVER);
  return q;
}

static VALUE queue_taken(queue *q, VALUE value) {
  um_turn_wake_one(&q->pushers);
  return value;
}

/* pop: the newest item; waits for one. */
static VALUE queue_pop(VALUE self) {
  queue *q = queue_with_item(self);
  return queue_taken(q, rb_ary_pop(q->items));
}

/* shift: the oldest item; waits for one. */
static VALUE queue_shift(VALUE self) {
  queue *q = queue_with_item(self);
  return queue_taken(q, rb_ary_shift(q->items));
}

/* size: how many items are there. */
static VALUE queue_size(VALUE self) { return LONG2NUM(RARRAY_LEN(queue_get(self)->items)); }

/* empty?: whether no item is there. */
static VALUE queue_empty_p(VALUE self) {
  return RARRAY_LEN(queue_get(self)->items) ? Qfalse : Qtrue;
}

/* ---- mutex ---- */

typedef struct mutex {
  VALUE owner; /* a fiber, or nil */
  um_turn turn;
} mutex;

static void mutex_mark(void *data) {
  mutex *m = data;
  rb_gc_mark(m->owner);
  um_turn_mark(&m->turn);
}

static const rb_data_type_t mutex_type = {
    "UM::Mutex", {mutex_mark, RUBY_DEFAULT_FREE, NULL, NULL, {NULL}}, NULL, NULL,
    RUBY_TYPED_FREE_IMMEDIATELY};

static VALUE mutex_allocate(VALUE class) {
  mutex *m;
  VALUE self = TypedData_Make_Struct(class, mutex, &mutex_type, m);
  m->owner = Qnil;
  return self;
}

static mutex *mutex_get(VALUE self) { return rb_check_typeddata(self, &mutex_type); }

/* unlock: by the fiber that has locked it. */
static VALUE mutex_unlock(VALUE self) {
  mutex *m = mutex_get(self);
  if (m->owner != rb_fiber_current()) rb_raise(rb_eThreadError, "the mutex is not locked by this fiber");
  m->owner = Qnil;
  um_turn_wake_one(&m->turn);
  return self;
}

/* lock: waits until no other fiber has it. */
static VALUE mutex_lock(VALUE self) {
  mutex *m = mutex_get(self);
  if (m->owner == rb_fiber_current()) rb_raise(rb_eThreadError, "deadlock; recursive locking");
  while (!NIL_P(m->owner)) um_turn_wait(&m->turn, UM_FOREVER);
  m->owner = rb_fiber_current();
  return self;
}

/* locked?: whether any fiber has it. */
static VALUE mutex_locked_p(VALUE self) { return NIL_P(mutex_get(self)->owner) ? Qfalse : Qtrue; }

/* synchronize { }: locked while the block runs. */
static VALUE mutex_synchronize(VALUE self) {
  mutex_lock(self);
  return rb_ensure(rb_yield, Qundef, mutex_unlock, self); /* without an argument */
}

/* ---- by a machine's methods: waiting then happens in its ring ---- */

/* push(queue, item): UM::Queue#push. */
static VALUE machine_push(VALUE self, VALUE object, VALUE value) {
  um_enter(um_machine_get(self));
  return queue_push(object, value);
}

/* unshift(queue, item): UM::Queue#unshift. */
static VALUE machine_unshift(VALUE self, VALUE object, VALUE value) {
  um_enter(um_machine_get(self));
  return queue_unshift(object, value);
}

/* pop(queue): UM::Queue#pop. */
static VALUE machine_pop(VALUE self, VALUE object) {
  um_enter(um_machine_get(self));
  return queue_pop(object);
}

/* shift(queue): UM::Queue#shift. */
static VALUE machine_shift(VALUE self, VALUE object) {
  um_enter(um_machine_get(self));
  return queue_shift(object);
}

/* synchronize(mutex) { }: UM::Mutex#synchronize. */
static VALUE machine_synchronize(VALUE self, VALUE object) {
  um_enter(um_machine_get(self));
  return mutex_synchronize(object);
}

void um_init_queue(void) {
#if 0 /* for RDoc, which looks at one file at a time */
  um_cUM = rb_define_class("UM", rb_cObject);
#endif
  /* Document-class: UM::Queue
   * Items between fibers of machines, fibers of schedulers, and threads. */
  VALUE queue = rb_define_class_under(um_cUM, "Queue", rb_cObject);
  rb_define_alloc_func(queue, queue_allocate);
  rb_define_method(queue, "initialize", queue_initialize, -1);
  rb_define_method(queue, "push", queue_push, 1);
  rb_define_method(queue, "<<", queue_push, 1);
  rb_define_method(queue, "unshift", queue_unshift, 1);
  rb_define_method(queue, "pop", queue_pop, 0);
  rb_define_method(queue, "shift", queue_shift, 0);
  rb_define_method(queue, "size", queue_size, 0);
  rb_define_method(queue, "count", queue_size, 0);
  rb_define_method(queue, "empty?", queue_empty_p, 0);
  /* Document-class: UM::Mutex
   * One fiber at a time, of any machine or scheduler, or a thread. */
  VALUE mutex = rb_define_class_under(um_cUM, "Mutex", rb_cObject);
  rb_define_alloc_func(mutex, mutex_allocate);
  rb_define_method(mutex, "lock", mutex_lock, 0);
  rb_define_method(mutex, "unlock", mutex_unlock, 0);
  rb_define_method(mutex, "locked?", mutex_locked_p, 0);
  rb_define_method(mutex, "synchronize", mutex_synchronize, 0);
  rb_define_method(um_cUM, "push", machine_push, 2);
  rb_define_method(um_cUM, "unshift", machine_unshift, 2);
  rb_define_method(um_cUM, "pop", machine_pop, 1);
  rb_define_method(um_cUM, "shift", machine_shift, 1);
  rb_define_method(um_cUM, "synchronize", machine_synchronize, 1);
}
