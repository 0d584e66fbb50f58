/**
 * Tests on a machine on which everything is slow, such as one that is emulated: `TEST_DAEMON_SETTINGS` is JSON with settings for each of
 * their daemons, by their `DORMOUSE_` names.
 */
import { parseDuration } from '@dormouse/api/units.ts'

export const slowHostSettings: Readonly<Record<string, string>> = JSON.parse(process.env.TEST_DAEMON_SETTINGS || '{}')

/** So many times as long as on any host may whatever has a limit take; see test/kvm-lab/longer-limits.ts. */
export const timeFactor = Number(process.env.TEST_TIME_FACTOR || 1)

/** How long a guest may take to boot with KVM there; undefined: as on any host. */
export const kvmProbeLimitMs = parseDuration(slowHostSettings.DORMOUSE_KVM_PROBE_LIMIT ?? '')

/** Of a program that is told a limit, for what is to come (`nc -w`); what is not to come is not waited for as long. */
export const PATIENCE_S = 5 * timeFactor
