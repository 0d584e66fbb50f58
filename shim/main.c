/*
 * dormouse-shim: the small process between the daemon and one VMM, and a few jobs that need a system call that Node lacks.
 *
 *   run [options] -- VMM ARGS   becomes the VMM's parent and outlives the daemon (run.c)
 *   base FILE                   fills a write-sealed memfd from a memory file and holds it until standard input ends (memory.c)
 *   blank BYTES                 holds an empty memfd of that size
 *   store FILE                  seals the memfd given as descriptor 3 and writes what is in it to FILE
 *   consolidate BASE|- DELTA OUT [MAX_BYTES_PER_SECOND [SUM PAGES]]
 *                               writes a base with a delta laid over it to OUT (consolidate.c)
 *   compress zstd|lz4 LEVEL DELTA|- OUT [BASE SUM PAGES GROUND|- SUM PAGES]
 *                               writes a delta, or what it makes of BASE as it differs from GROUND, packed to OUT (compress.c)
 *   verify BASE|- DELTA|-       reads both from end to end and says what they sum up to (verify.c)
 *   ranges DELTA OUT            writes the pages of a delta one after the other, and tells which they are (ranges.c)
 *   reach UID:GID|-             tells whether it may look into the memory of a VMM of that user (reach.c)
 *   forget [--dry-run] FILES    takes files out of the page cache (forget.c)
 *   conntrack SUBNET4 SUBNET6   tells who is connected to the guests of a bridge (conntrack.c)
 *   tsc                         prints the frequency of the time stamp counter in kHz
 */
#include <stdio.h>
#include <string.h>

#include "commands.h"

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "run") == 0) return command_run(argc - 2, argv + 2);
    if (strcmp(command, "base") == 0 && argc == 3) return command_base(argv[2]);
    if (strcmp(command, "blank") == 0 && argc == 3) return command_blank(argv[2]);
    if (strcmp(command, "store") == 0 && argc == 3) return command_store(argv[2]);
    if (strcmp(command, "consolidate") == 0 && argc >= 5) return command_consolidate(argc - 2, argv + 2);
    if (strcmp(command, "compress") == 0 && (argc == 6 || argc == 12)) return command_compress(argc - 2, argv + 2);
    if (strcmp(command, "verify") == 0 && argc == 4) return command_verify(argv[2], argv[3]);
    if (strcmp(command, "ranges") == 0 && argc == 4) return command_ranges(argv[2], argv[3]);
    if (strcmp(command, "reach") == 0 && argc == 3) return command_reach(argv[2]);
    if (strcmp(command, "forget") == 0) return command_forget(argc - 2, argv + 2);
    if (strcmp(command, "conntrack") == 0 && argc == 4) return command_conntrack(argv[2], argv[3]);
    if (strcmp(command, "tsc") == 0) return command_tsc();
    fprintf(stderr, "usage: dormouse-shim run [options] -- VMM ARGS | base FILE | blank BYTES | store FILE | consolidate BASE|- DELTA OUT | "
                    "compress ALGORITHM LEVEL DELTA|- OUT | verify BASE|- DELTA|- | ranges DELTA OUT | reach UID:GID|- | forget [--dry-run] FILES | conntrack SUBNET4 SUBNET6 | tsc\n");
    return 64;
}
