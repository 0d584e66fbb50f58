import { AppError } from '@dormouse/api/errors.ts'
import type { Caller } from './auth.ts'
import type { ImagesDoor } from './uses.ts'

export function isHere(images: Pick<ImagesDoor, 'getImage'>, name: string): boolean {
  try {
    images.getImage(name)
    return true
  } catch {
    return false
  }
}

/**
 * What listens on the host's loopback is the host's own business: a token that may not do everything leads the daemon there only where the
 * configuration says so (docs/decisions/0076). Throws `registry_refused`.
 */
export function admitRegistry({ scopes }: Caller, images: Pick<ImagesDoor, 'leadsToLoopback'>, name: string): void {
  if (scopes === undefined || !images.leadsToLoopback(name)) return
  throw new AppError(
    'registry_refused',
    `The registry of ${name.slice(0, 200)} is on the host's loopback, where a token with scopes does not reach`,
    {
      hint: 'To allow it, list it in the host’s configuration: DORMOUSE_INSECURE_REGISTRIES=localhost:5000',
    },
  )
}
