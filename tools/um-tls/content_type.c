#include "content_type.h"

#include <stddef.h>
#include <string.h>
#include <strings.h>

static const struct { const char *extension, *type; } types[] = {
  {"avif", "image/avif"},
  {"bin", "application/octet-stream"},
  {"c", "text/plain; charset=utf-8"},
  {"css", "text/css; charset=utf-8"},
  {"csv", "text/csv; charset=utf-8"},
  {"gif", "image/gif"},
  {"gz", "application/gzip"},
  {"h", "text/plain; charset=utf-8"},
  {"htm", "text/html; charset=utf-8"},
  {"html", "text/html; charset=utf-8"},
  {"ico", "image/vnd.microsoft.icon"},
  {"jpeg", "image/jpeg"},
  {"jpg", "image/jpeg"},
  {"js", "text/javascript; charset=utf-8"},
  {"json", "application/json"},
  {"md", "text/markdown; charset=utf-8"},
  {"mjs", "text/javascript; charset=utf-8"},
  {"mp3", "audio/mpeg"},
  {"mp4", "video/mp4"},
  {"ogg", "audio/ogg"},
  {"otf", "font/otf"},
  {"pdf", "application/pdf"},
  {"png", "image/png"},
  {"svg", "image/svg+xml"},
  {"tar", "application/x-tar"},
  {"txt", "text/plain; charset=utf-8"},
  {"wasm", "application/wasm"},
  {"wav", "audio/wav"},
  {"webm", "video/webm"},
  {"webp", "image/webp"},
  {"woff", "font/woff"},
  {"woff2", "font/woff2"},
  {"xml", "application/xml"},
  {"zip", "application/zip"},
};

const char *content_type(const char *path) {
  const char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');
  for (size_t i = 0; dot && i < sizeof types / sizeof *types; i++)
    if (!strcasecmp(dot + 1, types[i].extension)) return types[i].type;
  return "application/octet-stream";
}
