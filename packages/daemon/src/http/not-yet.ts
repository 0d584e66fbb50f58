/** Fields that the contract has and this version has not. Asking for one is refused by name; leaving it off is always fine. */
import { AppError } from '@dormouse/api/errors.ts'
import type { CreateInstanceRequest, UpdateInstanceRequest } from '@dormouse/api/instances.ts'

type Asking = CreateInstanceRequest & UpdateInstanceRequest

const isOn = (policy: { enabled?: boolean } | undefined): boolean => policy?.enabled === true

const NOT_YET: readonly (readonly [field: string, isAskedFor: (body: Partial<Asking>) => boolean, why: string])[] = [
  ['network.egress', (body) => isOn(body.network?.egress), 'egress mediation is not built yet'],
  ['credentials', (body) => Object.keys(body.credentials ?? {}).length > 0, 'credential brokering is not built yet'],
]

/** Throws `not_supported` naming every field that cannot be had yet. The texts in it have been checked. */
export function refuseNotYet(body: Partial<Asking>): void {
  const asked = NOT_YET.filter(([, isAskedFor]) => isAskedFor(body))
  if (asked.length === 0) return
  const [first] = asked
  throw new AppError('not_supported', `\`${first?.[0]}\` cannot be used: ${first?.[2]}`, {
    hint: `Leave out ${asked.map(([field]) => field).join(', ')}`,
    ...(asked.length > 1 && { detail: { problems: asked.map(([field, , why]) => `\`${field}\`: ${why}`) } }),
  })
}
