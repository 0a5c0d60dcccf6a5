/* The HTTP request parser of um-tls: what it accepts, and above all what not. */
#include "../../tools/um-tls/http.h"

#include <criterion/criterion.h>
#include <string.h>

static int parse(const char *head, http_request *out) {
  return http_parse(head, strlen(head), out);
}

static int status_of(const char *head) {
  http_request request;
  return parse(head, &request);
}

#define H "Host: a\r\n"

Test(http, plain_get) {
  http_request r;
  cr_assert_eq(parse("GET /x?y=1 HTTP/1.1\r\nHost: localhost:1\r\nAccept: */*\r\n\r\n", &r), 0);
  cr_assert(http_slice_is(r.method, "GET"));
  cr_assert(http_slice_is(r.target, "/x?y=1"));
  cr_assert(r.keep_alive && !r.http_1_0 && !r.chunked && !r.content_length && !r.range.at);
}

Test(http, all_the_fields_we_read) {
  http_request r;
  cr_assert_eq(parse("GET / HTTP/1.1\r\nhOST:a\r\nCONTENT-LENGTH:\t 12 \r\nRange: bytes=1-2 \r\n"
                     "If-Range: x\r\nExpect: 100-continue\r\nConnection: te, Close ,x\r\n\r\n",
                     &r), 0);
  cr_assert_eq(r.content_length, 12);
  cr_assert(http_slice_is(r.range, "bytes=1-2"));
  cr_assert(r.if_range && r.expects_continue && !r.keep_alive);
}

Test(http, keep_alive_by_version) {
  static const struct { const char *head; bool keep; } cases[] = {
    {"GET / HTTP/1.1\r\n" H "\r\n", true},
    {"GET / HTTP/1.1\r\n" H "Connection: close\r\n\r\n", false},
    {"GET / HTTP/1.1\r\n" H "Connection: close, keep-alive\r\n\r\n", false},
    {"GET / HTTP/1.2\r\n" H "\r\n", true},
    {"GET / HTTP/1.0\r\n\r\n", false},
    {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
    {"GET / HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", false},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    http_request r;
    cr_assert_eq(parse(cases[i].head, &r), 0, "%s", cases[i].head);
    cr_expect_eq(r.keep_alive, cases[i].keep, "%s", cases[i].head);
  }
}

Test(http, refused) {
  static const struct { int status; const char *head;
  } cases[] = {
      {400, ""},
      {400, "\r\n\r\n"},
      {400, "GET\r\n\r\n"},
      {400, "GET /\r\n\r\n"},
      {400, "GET  / HTTP/1.1\r\n" H "\r\n"},
      {400, "GET /  HTTP/1.1\r\n" H "\r\n"},
      {400, "GET / a HTTP/1.1\r\n" H "\r\n"},
      {400, "GET / HTTP/1.1 \r\n" H "\r\n"},
      {400, "GET / HTTP/11\r\n" H "\r\n"},
      {400, "GET / http/1.1\r\n" H "\r\n"},
      {400, "GET / HTTP/1.1\nHost: a\r\n\r\n"},
      {400, "G\x01T / HTTP/1.1\r\n" H "\r\n"},
      {400, "GET /\x80 HTTP/1.1\r\n" H "\r\n"},
      {400, " GET / HTTP/1.1\r\n" H "\r\n"},
      {505, "GET / HTTP/2.0\r\n" H "\r\n"},
      {505, "GET / HTTP/0.9\r\n" H "\r\n"},
      {400, "GET / HTTP/1.1\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H H "\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "X : y\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H ": y\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "no colon\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "X: a\r\n folded\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "X: a\nY: b\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "X: a\rb\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "X: a\x7f\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Content-Length: 1\r\nContent-Length: 1\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Content-Length: 1, 1\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Content-Length: +1\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Content-Length: -1\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Content-Length: 0x1\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Content-Length: \r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Content-Length: 99999999999999999999\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"},
      {400,
       "GET / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"},
      {400, "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"},
      {501, "GET / HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n"},
      {501, "GET / HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n"},
      {400, "GET / HTTP/1.1\r\n" H "Range: bytes=0-1\r\nRange: bytes=0-1\r\n\r\n"},
      {0, "GET / HTTP/1.1\r\n" H "X:\r\nY: \t \r\nZ: \xff\r\n\r\n"},
      {0, "M-SEARCH * HTTP/1.1\r\n" H "\r\n"},
      {0, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: Chunked\r\n\r\n"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    cr_expect_eq(status_of(cases[i].head), cases[i].status, "case %zu: %s", i, cases[i].head);
}

Test(http, a_nul_is_refused) {
  static const char head[] = "GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n";
  http_request r;
  cr_assert_eq(http_parse(head, sizeof head - 1, &r), 400);
}

Test(http, end_of_head_in_every_split) {
  static const char head[] = "GET / HTTP/1.1\r\n" H "\r\nmore";
  size_t whole = sizeof head - 1 - 4;
  for (size_t first = 0; first < sizeof head; first++) {
    cr_assert_eq(http_head_length(head, first, 0), first >= whole ? whole : 0);
    if (first < whole) cr_assert_eq(http_head_length(head, sizeof head - 1, first), whole);
  }
  cr_assert_eq(http_leading_blank("\r\n\r\nGET", 7), 4);
  cr_assert_eq(http_leading_blank("\r\n\r", 3), 2);
  cr_assert_eq(http_leading_blank("GET", 3), 0);
}

static http_slice slice(const char *text) { return (http_slice){text, strlen(text)}; }

Test(http, paths) {
  static const struct { const char *target, *path; } cases[] = {
    {"/", "/"},
    {"/a/b?c/../..", "/a/b"},
    {"/a/./b/../c/", "/a/c/"},
    {"/a/..", "/"},
    {"/a/b/..", "/a/"},
    {"/a/.", "/a/"},
    {"//etc//passwd", "/etc/passwd"},
    {"/%61%2fb%20c", "/a/b c"},
    {"/...", "/..."},
    {"/..a/.b", "/..a/.b"},
    {"/%25", "/%"},
    {"https://host:1/a/b", "/a/b"},
    {"HTTP://host", "/"},
    {"/\\..\\x", "/\\..\\x"},
  };
  char path[64];
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    cr_assert_eq(http_path(slice(cases[i].target), path, sizeof path), 0, "%s", cases[i].target);
    cr_expect_str_eq(path, cases[i].path, "%s gave %s", cases[i].target, path);
  }
}

Test(http, paths_refused) {
  static const char *const cases[] = {"",        "*",        "a",      "/..",         "/../x",
                                      "/a/../..", "/%2e%2e/", "/.%2E", "/a/%2e%2e%2f..", "/%",
                                      "/%0",     "/%zz",     "/%00",   "/%0d%0a",     "host:443"};
  char path[64];
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    cr_expect_eq(http_path(slice(cases[i]), path, sizeof path), 400, "%s", cases[i]);
  char small[4];
  cr_expect_eq(http_path(slice("/ab"), small, sizeof small), 0);
  cr_expect_eq(http_path(slice("/abc"), small, sizeof small), 414);
}

Test(http, ranges) {
  static const struct {
    const char *value;
    uint64_t size;
    int status;
    uint64_t first, last;
  } cases[] = {
      {"bytes=0-0", 10, 206, 0, 0}, {"bytes=2-4", 10, 206, 2, 4},
      {"Bytes=5-", 10, 206, 5, 9},  {"bytes=-3", 10, 206, 7, 9},
      {"bytes=-99", 10, 206, 0, 9}, {"bytes=9-99999999999999999999999", 10, 206, 9, 9},
      {"bytes=10-", 10, 416, 0, 0}, {"bytes=-0", 10, 416, 0, 0},
      {"bytes=0-", 0, 416, 0, 0},   {"bytes=-1", 0, 416, 0, 0},
      {"bytes=4-2", 10, 200, 0, 0}, {"bytes=0-1,3-4", 10, 200, 0, 0},
      {"bytes=-", 10, 200, 0, 0},   {"bytes=a-b", 10, 200, 0, 0},
      {"bytes=1", 10, 200, 0, 0},   {"lines=0-1", 10, 200, 0, 0},
      {"", 10, 200, 0, 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint64_t first = 0, last = 0;
    int status = http_range(slice(cases[i].value), cases[i].size, &first, &last);
    cr_assert_eq(status, cases[i].status, "%s", cases[i].value);
    if (status == 206)
      cr_assert(first == cases[i].first && last == cases[i].last, "%s", cases[i].value);
  }
}
