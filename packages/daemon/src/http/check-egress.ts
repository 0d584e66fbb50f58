import { AppError } from '@dormouse/api/errors.ts'
import type { CreateInstanceRequest } from '@dormouse/api/instances.ts'
import { credentialsOf } from '../egress/credentials.ts'
import type { CreateInstance } from '../instances/instance.ts'

/**
 * How the instance is to go out; undefined: by itself. Throws `invalid_request` naming the field when that contradicts itself, or the rest
 * of the request.
 */
export function toEgress({
  network,
  credentials = {},
  env = {},
}: Pick<CreateInstanceRequest, 'network' | 'credentials' | 'env'>): CreateInstance['egress'] {
  const isOn = network?.egress?.enabled === true
  if (isOn && network.enabled === false) throw new AppError('invalid_request', '`network.egress` needs the network enabled')
  if (isOn) return { mode: network.egress?.enforcement?.mode ?? 'all', credentials: credentialsOf(credentials, env) }
  if (Object.keys(credentials).length === 0) return undefined
  throw new AppError('invalid_request', '`credentials` need `network.egress.enabled`: they are put in on the way out')
}
