#pragma once

/* What `dormouse-shim` can be told to do; each returns the exit code. */
int command_run(int argc, char **argv);
int command_base(const char *file);
int command_blank(const char *bytes);
int command_store(const char *file);
int command_consolidate(int argc, char **argv);
int command_compress(int argc, char **argv);
int command_verify(const char *base, const char *delta_file);
int command_ranges(const char *file, const char *out);
int command_reach(const char *user);
int command_forget(int count, char **files);
int command_conntrack(const char *subnet4, const char *subnet6);
int command_tsc(void);
