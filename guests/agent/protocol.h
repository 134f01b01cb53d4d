/*
 * What every agent that speaks the lab's protocol has in common, whatever
 * it runs on.  Freestanding: no C library behind it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef PAGEFLIP_PROTOCOL_H
#define PAGEFLIP_PROTOCOL_H

#define AGENT_VERSION "1"
#define CONTROL_PORT "org.pageflip.control"
#define HEARTBEAT_PORT "org.pageflip.heartbeat"
#define LINE_MAX_BYTES 4096
#define NS_PER_SEC 1000000000ULL
#define NS_PER_MS 1000000ULL
/* Nothing a host would ask for; keeps rate times time within 64 bits */
#define RATE_MAX 50000000000LL

#endif
