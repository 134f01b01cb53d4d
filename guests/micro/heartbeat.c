/*
 * One line each millisecond, so that the host can see from outside for
 * how long the guest stood still; and the guest's own view of the same.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "micro.h"

static uint64_t number, next_ns, last_mono_ns, last_real_ns;
static uint64_t beats, skipped, max_step_ns, clock_went_back;

static void watch_clocks(uint64_t mono, uint64_t real)
{
    if (mono < last_mono_ns || real < last_real_ns) {
        clock_went_back++;
    } else if (mono - last_mono_ns > max_step_ns) {
        max_step_ns = mono - last_mono_ns;
    }
    last_mono_ns = mono;
    last_real_ns = real;
}

static bool send_beat(uint64_t mono, uint64_t real)
{
    char bytes[128];
    Text line = { .bytes = bytes, .size = sizeof(bytes) };

    text_string(&line, "{\"n\":");
    text_number(&line, ++number);
    text_member(&line, "mono_ns", mono);
    text_member(&line, "real_ns", real);
    text_string(&line, "}\n");
    return heartbeat_write(bytes, line.len);
}

bool heartbeat_poll(void)
{
    uint64_t mono, real;

    if (!clock_may_have_reached(next_ns)) {
        return false;
    }
    mono = clock_read();
    if (mono < next_ns) {
        return false;
    }
    real = clock_real(mono);
    watch_clocks(mono, real);
    if (send_beat(mono, real)) {
        beats++;
    } else {
        skipped++;
    }
    /* After a gap start afresh: a burst would hide it from the host */
    next_ns = (mono > next_ns + NS_PER_MS ? mono : next_ns) + NS_PER_MS;
    return true;
}

void heartbeat_init(void)
{
    last_mono_ns = next_ns = clock_read();
    last_real_ns = clock_real(last_mono_ns);
}

void heartbeat_report(Text *text)
{
    text_member(text, "heartbeats", beats);
    text_member(text, "heartbeats_skipped", skipped);
    text_member(text, "max_step_ns", max_step_ns);
    text_member(text, "clock_went_back", clock_went_back);
}

void heartbeat_reset_max_step(void)
{
    max_step_ns = 0;
}
