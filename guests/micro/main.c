/*
 * The payload from here on: ring 3, one loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "micro.h"

void micro_main(void)
{
    clock_init();
    log_line("RAM", memory_total());
    ports_init();
    heartbeat_init();
    command_ready();
    for (;;) {
        bool busy = heartbeat_poll();

        ports_poll();
        busy |= worker_step();
        if (!busy) {
            nap();
        }
    }
}
