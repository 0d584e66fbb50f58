import { AppError } from '@dormouse/api/errors.ts'
import type { CreateInstanceRequest } from '@dormouse/api/instances.ts'
import { credentialsOf } from '../egress/credentials.ts'

/** What of mediated egress contradicts itself, or the rest of the request. Throws `invalid_request` naming the field. */
export function checkEgress({ network, credentials = {}, env = {} }: Pick<CreateInstanceRequest, 'network' | 'credentials' | 'env'>): void {
  const isOn = network?.egress?.enabled === true
  if (isOn && network.enabled === false) throw new AppError('invalid_request', '`network.egress` needs the network enabled')
  if (Object.keys(credentials).length === 0) return
  if (!isOn) throw new AppError('invalid_request', '`credentials` need `network.egress.enabled`: they are put in on the way out')
  credentialsOf(credentials, env)
}
