// SPDX-License-Identifier: Apache-2.0
// For LD_PRELOAD: the 60th message that rank 1 receives is a byte shorter than it was sent, once: the file $TORN says that it
// has happened.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int MPI_Get_elements_x(const MPI_Status* status, MPI_Datatype type, MPI_Count* count) {
  static int messages;
  const int code = PMPI_Get_elements_x(status, type, count);
  const char* rank = getenv("PMIX_RANK");
  if (rank == NULL || rank[0] != '1' || *count == 0 || ++messages != 60) return code;
  FILE* torn = fopen(getenv("TORN"), "wx");
  if (torn == NULL) return code;
  fclose(torn);
  --*count;
  return code;
}
