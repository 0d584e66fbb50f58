#include "check.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "words.h"

static void says(struct ending *ending, int code, const char *message)
{
	CHECK_IN(ending->code == code && strcmp(ending->message, message) == 0, ending->message);
}

void test_words(void)
{
	struct ending e;
	ending_of_status(&e, W_EXITCODE(0, 0), false);
	says(&e, 0, "exited");
	ending_of_status(&e, W_EXITCODE(3, 0), false);
	says(&e, 3, "exited with code 3");
	ending_of_status(&e, W_EXITCODE(0, SIGKILL), true);
	says(&e, 137, "killed by signal 9 (SIGKILL) - OOM");
	ending_of_status(&e, W_EXITCODE(0, SIGTERM), false);
	says(&e, 143, "killed by signal 15 (SIGTERM)");
	ending_of_status(&e, W_EXITCODE(0, 38), false);
	says(&e, 166, "killed by signal 38 (SIGRTMIN+4)");
	ending_of_status(&e, W_EXITCODE(137, 0), true);
	says(&e, 137, "exited with code 137 (as after SIGKILL) - OOM");
	ending_of_exec(&e, ENOENT, "nosuch");
	says(&e, 127, "command not found: nosuch");
	ending_of_exec(&e, EACCES, "/etc/passwd");
	says(&e, 126, "permission denied: /etc/passwd");
	ending_of_exec(&e, ENOEXEC, "/bin/text");
	says(&e, 126, "exec format error: /bin/text");
	char json[32];
	json_escape(json, sizeof json, "a\"b\\c\nd\xff");
	CHECK_IN(strcmp(json, "a\\\"b\\\\c\\u000ad?") == 0, json);
	json_escape(json, sizeof json, "a very long text that does not fit into its room at all");
	CHECK_IN(strlen(json) < sizeof json, json);
}
