/* The result of a load run: text for people, or one JSON object. */
#include "load.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

const char *const load_error_names[LOAD_ERRORS] = {
  [LOAD_CONNECT] = "connect",   [LOAD_TIMEOUT] = "timeout", [LOAD_RESET] = "reset",
  [LOAD_TRUNCATED] = "truncated", [LOAD_CLOSED] = "closed", [LOAD_TLS] = "tls",
  [LOAD_VERIFY] = "verify",     [LOAD_MISMATCH] = "mismatch", [LOAD_STATUS] = "status",
  [LOAD_OTHER] = "other",
};

static uint64_t now_of(const _Atomic uint64_t *counter) {
  return atomic_load_explicit(counter, memory_order_relaxed);
}

load_sum load_count(const load *l) {
  load_sum sum = {0};
  for (uint64_t i = 0; i < l->options.threads; i++) {
    const load_counters *c = &l->workers[i].counters;
    sum.operations += now_of(&c->operations);
    sum.sent += now_of(&c->sent);
    sum.received += now_of(&c->received);
    sum.handshakes += now_of(&c->handshakes);
    sum.resumed += now_of(&c->resumed);
    sum.open += now_of(&c->open);
    for (int e = 0; e < LOAD_ERRORS; e++) sum.errors_of[e] += now_of(&c->errors[e]);
  }
  for (int e = 0; e < LOAD_ERRORS; e++) sum.errors += sum.errors_of[e];
  return sum;
}

static const char *mode(const load_options *o) {
  return o->echo ? "echo" : o->http ? "http" : o->idle ? "idle" : "handshake";
}

static const char *first_error(const load *l) {
  for (uint64_t i = 0; i < l->options.threads; i++)
    if (*l->workers[i].first_error) return l->workers[i].first_error;
  return "";
}

static double us(uint64_t ns) { return (double)ns / 1000; }

static double per(double amount, double of) { return of > 0 ? amount / of : 0; }

static void print_json_text(const char *text) {
  putchar('"');
  for (; *text; text++) {
    if (*text == '"' || *text == '\\') putchar('\\');
    putchar((unsigned char)*text < ' ' ? ' ' : *text);
  }
  putchar('"');
}

static void print_json(const load *l, const load_sum *s, const histogram *h, double seconds,
                       double cpu) {
  const load_options *o = &l->options;
  printf("{\"mode\": \"%s\", \"peer\": ", mode(o));
  print_json_text(o->client.peer);
  printf(", \"size\": %" PRIu64 ", \"connections\": %" PRIu64 ", \"threads\": %" PRIu64
         ", \"pipeline\": %" PRIu64 ", \"new_connections\": %s, \"idle\": %s, \"seconds\": %.3f, ",
         o->echo ? o->size : 0, o->connections, o->threads, o->pipeline,
         o->new_connections ? "true" : "false", o->idle ? "true" : "false", seconds);
  printf("\"operations\": %" PRIu64 ", \"rate\": %.1f, \"latency_us\": {\"min\": %.1f, "
         "\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}, ",
         s->operations, per((double)s->operations, seconds), us(h->least),
         us(histogram_quantile(h, 0.5)), us(histogram_quantile(h, 0.9)),
         us(histogram_quantile(h, 0.99)), us(h->most));
  printf(
      "\"bytes_sent\": %" PRIu64 ", \"bytes_received\": %" PRIu64 ", \"bytes_per_second\": %.0f, "
      "\"handshakes\": %" PRIu64 ", \"resumed\": %" PRIu64 ", \"load_cpu_us\": %.3f, \"errors\": "
      "{\"total\": %" PRIu64,
      s->sent, s->received, per((double)(s->sent + s->received), seconds), s->handshakes,
      s->resumed, per(cpu * 1e6, (double)s->operations), s->errors);
  for (int e = 0; e < LOAD_ERRORS; e++)
    printf(", \"%s\": %" PRIu64, load_error_names[e], s->errors_of[e]);
  printf("}, \"first_error\": ");
  print_json_text(first_error(l));
  puts("}");
}

static void print_errors(const load *l, const load_sum *s) {
  if (!s->errors) {
    puts("  errors      none");
    return;
  }
  printf("  errors      %" PRIu64 ":", s->errors);
  for (int e = 0; e < LOAD_ERRORS; e++)
    if (s->errors_of[e]) printf(" %s %" PRIu64, load_error_names[e], s->errors_of[e]);
  printf("\n              first: %s\n", first_error(l));
}

static void print_text(const load *l, const load_sum *s, const histogram *h, double seconds,
                       double cpu) {
  const load_options *o = &l->options;
  printf("%s", mode(o));
  if (o->echo) printf(" of %" PRIu64 " bytes", o->size);
  printf(", %s: connections %" PRIu64 ", threads %" PRIu64 ", %.1f s\n", o->client.peer,
         o->connections, o->threads, seconds);
  printf("  operations  %" PRIu64 ", %.0f a second, %.2f us of our CPU each\n", s->operations,
         per((double)s->operations, seconds), per(cpu * 1e6, (double)s->operations));
  printf("  latency us  min %.1f  p50 %.1f  p90 %.1f  p99 %.1f  max %.1f\n", us(h->least),
         us(histogram_quantile(h, 0.5)), us(histogram_quantile(h, 0.9)),
         us(histogram_quantile(h, 0.99)), us(h->most));
  printf("  bytes       %.2f MB/s sent, %.2f MB/s received\n", per((double)s->sent / 1e6, seconds),
         per((double)s->received / 1e6, seconds));
  printf("  handshakes  %" PRIu64 ", of them %" PRIu64 " resumed\n", s->handshakes, s->resumed);
  print_errors(l, s);
}

void load_report(const load *l, double seconds, double cpu_seconds) {
  load_sum sum = load_count(l);
  histogram *all = calloc(1, sizeof *all);
  if (!all) return;
  for (uint64_t i = 0; i < l->options.threads; i++) histogram_merge(all, &l->workers[i].latencies);
  if (l->options.json) print_json(l, &sum, all, seconds, cpu_seconds);
  else print_text(l, &sum, all, seconds, cpu_seconds);
  free(all);
}
