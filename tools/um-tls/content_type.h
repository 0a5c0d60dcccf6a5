#ifndef UM_TLS_CONTENT_TYPE_H
#define UM_TLS_CONTENT_TYPE_H

/* The media type for a file name's extension; application/octet-stream otherwise. */
const char *content_type(const char *path);

#endif
