/**
 * Tests on a machine on which everything is slow, such as one that is emulated: `TEST_DAEMON_SETTINGS` is JSON with settings for each of
 * their daemons, by their `DORMOUSE_` names.
 */
import { parseDuration } from '@dormouse/api/units.ts'

export const slowHostSettings: Readonly<Record<string, string>> = JSON.parse(process.env.TEST_DAEMON_SETTINGS || '{}')

/** How long a guest may take to boot with KVM there; undefined: as on any host. */
export const kvmProbeLimitMs = parseDuration(slowHostSettings.DORMOUSE_KVM_PROBE_LIMIT ?? '')
