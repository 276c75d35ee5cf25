// Remembers which deliveries are done, in this instance of the function only. If you
// need more than one instance, use Firestore instead: get and set a document that is
// named by the id, in a collection with a time-to-live policy.
export interface Memory {
  has(id: string): Promise<boolean>;
  add(id: string): Promise<void>;
}

const done = new Set<string>();

export const memory: Memory = {
  has: async (id) => done.has(id),
  async add(id) {
    done.add(id);
    if (done.size > 10_000) done.delete(done.values().next().value!);
  },
};
