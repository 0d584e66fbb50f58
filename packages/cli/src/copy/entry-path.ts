/**
 * Names that come out of a guest. The guest is hostile: a name must not lead out of the directory that the copy goes to, neither by
 * itself nor through a link that the same guest sent. Pure; held by a property test.
 */
import { Failure } from '../failure.ts'

/** The segments of an entry's path, the first being the copy's own root. Throws for any name that is not plainly below it. */
export function parseEntryPath(path: string): string[] {
  const segments = path.replace(/\/$/, '').split('/')
  if (segments.some((segment) => segment === '' || segment === '.' || segment === '..' || segment.includes('\0'))) {
    throw new Failure(`The guest sent a name that leads elsewhere: ${JSON.stringify(path)}`, { code: 'invalid_path' })
  }
  return segments
}

/**
 * Does a link's target stay inside the copy? `depth` is how many directories the link lies below the copy's root. Steps up are
 * taken only at the beginning, where they leave real directories: after a name they might leave through another link.
 */
export function staysInside(target: string, depth: number): boolean {
  if (target === '' || target.startsWith('/') || target.includes('\0')) return false
  const steps = target.split('/').filter((step) => step !== '' && step !== '.')
  const firstName = steps.findIndex((step) => step !== '..')
  const ups = firstName < 0 ? steps.length : firstName
  return ups <= depth && !steps.slice(ups).includes('..')
}
