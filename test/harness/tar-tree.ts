import { runCommand } from '../../packages/daemon/src/host/run-command.ts'

/** The tree as a tar file that is the same each time, and whose files belong to root whoever made them. */
export async function tarTree(tree: string, file: string): Promise<void> {
  const sameEachTime = ['--sort=name', '--mtime=@1767225600', '--owner=0', '--group=0', '--numeric-owner']
  await runCommand(['tar', '-C', tree, ...sameEachTime, '-cf', file, '.'], { step: { signal: AbortSignal.timeout(300_000) } })
}
