/** Policies as requests write them, with what is left out filled in. Their texts have been checked. */
import type { RestartPolicy as Asked } from '@dormouse/api/instances.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import type { RestartPolicy } from '../instances/instance.ts'

const ms = (text: string | undefined, otherwise: string): number => Math.ceil(parseDuration(text ?? otherwise) ?? 0)

export const toRestartPolicy = ({ policy = 'never', backoff, max_attempts = 0, stable_after }: Asked): RestartPolicy => ({
  policy,
  backoffMs: ms(backoff, '5s'),
  maxAttempts: max_attempts,
  stableAfterMs: ms(stable_after, '10m'),
})
