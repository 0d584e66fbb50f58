#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "users.h"

static const char PASSWD[] = "# a remark\n"
			     "root:x:0:0:root:/root:/bin/sh\n"
			     "broken line\n"
			     "daemon:x:1:1\n"
			     "alice:x:1000:1000:Alice:/home/alice:/bin/sh\n"
			     "bob:x:1001:100::/home/bob\n"
			     "alice:x:7:7:second:/elsewhere:/bin/sh\n"
			     "huge:x:99999999999:1:::\n"
			     "minus:x:4294967295:1::/:\n"
			     "last:x:1002:1002::/home/last:/bin/sh";
static const char GROUP[] = "root:x:0:\nwheel:x:27:bob,alice\naudio:x:29:alicea,balice\nvideo:x:44:alice\nbad:x:zz:alice\nalice:x:1000:";

static char passwd[] = "/tmp/dormouse-passwd-XXXXXX", group[] = "/tmp/dormouse-group-XXXXXX";

static void keep(char *path, const char *text)
{
	int fd = mkstemp(path);
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static struct identity *who(const char *user, const char **wrong)
{
	static struct identity identity;
	*wrong = identity_resolve(&identity, user, passwd, group);
	return &identity;
}

static void is(const char *user, uid_t uid, gid_t gid, const char *home, size_t groups)
{
	const char *wrong;
	struct identity *identity = who(user, &wrong);
	CHECK_IN(!wrong, user);
	CHECK_IN(identity->uid == uid && identity->gid == gid && strcmp(identity->home, home) == 0, user);
	CHECK_IN(identity->group_count == groups, user);
}

static void is_none(const char *user)
{
	const char *wrong;
	who(user, &wrong);
	CHECK_IN(wrong != NULL, user);
}

void test_users(void)
{
	keep(passwd, PASSWD);
	keep(group, GROUP);
	is("", 0, 0, "/root", 0);
	is("root", 0, 0, "/root", 0);
	is("alice", 1000, 1000, "/home/alice", 2);
	is("1000", 1000, 1000, "/home/alice", 2);
	is("bob", 1001, 100, "/home/bob", 1);
	is("last", 1002, 1002, "/home/last", 0);
	is("alice:video", 1000, 44, "/home/alice", 0);
	is("alice:5", 1000, 5, "/home/alice", 0);
	is("alice:", 1000, 1000, "/home/alice", 2);
	is("4242", 4242, 0, "/", 0);
	is("4242:4343", 4242, 4343, "/", 0);
	is_none("carol");
	is_none("alice:carol");
	is_none("4294967295");
	is_none("-1");
	is_none("huge");
	is_none("minus");
	unlink(passwd);
	unlink(group);
	/* An image from scratch has neither file. */
	is("", 0, 0, "/root", 0);
	is("7:8", 7, 8, "/", 0);
	is_none("alice");
}
