import { AppError } from '@dormouse/api/errors.ts'

/** What an image lives in: a volume over one of these would hide it. */
const WHOLE = ['/', '/bin', '/boot', '/etc', '/lib', '/lib32', '/lib64', '/libx32', '/root', '/sbin', '/tmp', '/usr', '/var']
/** The kernel's and the agent's own, with all that is below. */
const BELOW = ['/dev', '/proc', '/run', '/sys', '/lib/modules', '/usr/lib/modules', '/var/run']

/** The path without a slash at its end. Throws `invalid_path` for one where no volume can be. Pure. */
export function checkMountPath(text: string): string {
  const path = text.length > 1 && text.endsWith('/') ? text.slice(0, -1) : text
  const refuse = (why: string): never => {
    throw new AppError('invalid_path', `A volume cannot be mounted at ${JSON.stringify(text.slice(0, 200))}: ${why}`, {
      hint: 'Take a directory of its own, such as /data',
    })
  }
  if (!path.startsWith('/')) refuse('it is not an absolute path')
  if (path.includes('\0') || Buffer.byteLength(path) > 4095) refuse('it is no path')
  if (
    path
      .slice(1)
      .split('/')
      .some((part) => part === '' || part === '.' || part === '..') &&
    path !== '/'
  )
    refuse('it has empty parts, `.` or `..`')
  if (WHOLE.includes(path)) refuse('the system lives there')
  const above = BELOW.find((dir) => isAtOrBelow(path, dir))
  if (above !== undefined) refuse(`${above} is the system's own`)
  return path
}

/** Throws `invalid_path` when one is another, or lies within it. Pure. */
export function checkMountPaths(paths: readonly string[]): void {
  for (const [index, path] of paths.entries()) {
    for (const other of paths.slice(0, index)) {
      if (path === other) throw new AppError('invalid_path', `Two volumes cannot be mounted at ${path}`)
      const [inner, outer] = isAtOrBelow(path, other) ? [path, other] : [other, path]
      if (isAtOrBelow(inner, outer)) throw new AppError('invalid_path', `The mount path ${inner} lies within another, ${outer}`)
    }
  }
}

const isAtOrBelow = (path: string, dir: string): boolean => path === dir || path.startsWith(`${dir}/`)
